//! Variables that are used beside those of the settings: secrets, names that other programs share, proxies.

use snapferry_base::proxy;

use super::credentials::API_KEYS;
use super::environment::Environment;
use super::settings::{Origin, Shown};

/// Variables that give the region of the cloud if no setting does, the first one that is set before the
/// other: the name that IBM's command line takes, and the one that IBM's Terraform provider takes.
const REGIONS: [&str; 2] = ["IBMCLOUD_REGION", "IC_REGION"];

/// Variables that are shown beside the settings, each with true if it holds a secret.
const SHOWN: [(&str, bool); 15] = [
    ("SNAPFERRY_REDIS_PASSWORD", true),
    ("IBMCLOUD_API_KEY", true),
    ("IC_API_KEY", true),
    ("AWS_ACCESS_KEY_ID", false),
    ("AWS_SECRET_ACCESS_KEY", true),
    ("AWS_SESSION_TOKEN", true),
    ("AWS_REGION", false),
    ("AWS_DEFAULT_REGION", false),
    ("AWS_ENDPOINT_URL_S3", false),
    ("AWS_ENDPOINT_URL", false),
    ("AWS_PROFILE", false),
    ("AWS_SHARED_CREDENTIALS_FILE", false),
    ("CREDENTIALS_DIRECTORY", false),
    ("SNAPFERRY_QEMU_IMG", false),
    ("SNAPFERRY_YES", false),
];

/// Variables that are read before the settings.
const FIRST: [&str; 3] = ["SNAPFERRY_CONFIG", "SNAPFERRY_LOG", super::completions::VARIABLE];

/// Returns the names of all variables that are no settings.
pub fn names<'a>() -> impl Iterator<Item = &'a str> {
    SHOWN.iter().map(|shown| shown.0).chain(FIRST)
}

/// Returns the name of the first variable that gives a region, and the region.
pub fn region(environment: &Environment) -> Option<(&'static str, &str)> {
    REGIONS.into_iter().find_map(|name| Some((name, environment.get(name)?)))
}

/// Returns the variables that are set, without their secrets.
pub fn shown(environment: &Environment) -> impl Iterator<Item = Shown> {
    let shown = SHOWN.into_iter().filter_map(|(name, secret)| {
        let value = environment.get(name)?;
        Some((name, if secret { "***".to_owned() } else { value.to_owned() }))
    });
    let proxies = proxy::VARIABLES
        .into_iter()
        .filter_map(|name| Some((name, proxy::printable(name, environment.get(name)?))));
    shown.chain(proxies).map(|(name, value)| Shown {
        name: name.to_owned(),
        value: Some(value),
        origin: Origin::Environment(name.to_owned()),
    })
}

/// Returns pairs of variables that mean the same and have different values, the one that counts first.
pub fn contradictions(environment: &Environment) -> impl Iterator<Item = [&'static str; 2]> {
    [REGIONS, API_KEYS].into_iter().filter(|pair| match pair.map(|name| environment.get(name)) {
        [Some(first), Some(second)] => first.trim() != second.trim(),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(variables: &[(&str, &str)]) -> Vec<[&'static str; 2]> {
        contradictions(&Environment::from_pairs(variables)).collect()
    }

    #[test]
    fn variables_of_one_meaning_that_differ_are_told_of() {
        assert_eq!(
            found(&[("IBMCLOUD_API_KEY", "a"), ("IC_API_KEY", "b")]),
            [["IBMCLOUD_API_KEY", "IC_API_KEY"]]
        );
        assert_eq!(
            found(&[("IC_REGION", "us-east"), ("IBMCLOUD_REGION", "eu-de")]),
            [["IBMCLOUD_REGION", "IC_REGION"]]
        );
    }

    #[test]
    fn variables_that_agree_or_are_alone_are_no_contradiction() {
        assert!(found(&[("IBMCLOUD_API_KEY", "a"), ("IC_API_KEY", "a\n")]).is_empty());
        assert!(found(&[("IC_API_KEY", "a"), ("IBMCLOUD_REGION", "eu-de")]).is_empty());
    }
}
