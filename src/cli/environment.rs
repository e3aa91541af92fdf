//! The environment variables of this process.

use snapferry_base::proxy::Proxies;

/// Environment variables, read once, so that tests can pass others.
#[derive(Clone, Default)]
pub struct Environment {
    variables: std::collections::BTreeMap<String, String>,
}

impl Environment {
    /// Reads the variables of this process; a name or value that is not UTF-8 is left out.
    pub fn of_process() -> Self {
        Self {
            variables: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
        }
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.keys().map(String::as_str)
    }

    /// Returns the proxies that the variables name.
    pub fn proxies(&self) -> Proxies {
        Proxies::of(|name| self.variables.get(name).cloned())
    }

    /// Returns the value of a variable, unless it is empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
impl Environment {
    pub fn from_pairs(variables: &[(&str, &str)]) -> Self {
        Self {
            variables: variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
        }
    }
}
