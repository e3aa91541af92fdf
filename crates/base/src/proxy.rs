//! Proxies: the one that a request goes through, by the environment variables that curl and most other tools
//! obey. All clients ask here, so that they agree.

use std::fmt;
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use url::{Host, Url};

use crate::ca_file::is_this_machine;
use crate::retry::Class;

/// Variables with the address of a proxy, and those with the exceptions from it. Of two that differ in case
/// alone, the first one that is set counts, even if it is empty.
pub const VARIABLES: [&str; 8] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// Time limit for each step of a question to a proxy.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest part of a proxy's answer that is read. The status is in its first line.
const LONGEST_ANSWER: usize = 4096;

/// A variable that is set, and its value, which may contain a password.
#[derive(Clone)]
struct Setting {
    variable: &'static str,
    value: String,
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.variable)
    }
}

/// Proxies that the user has set. The default has none.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    http: Option<Setting>,
    https: Option<Setting>,
    exceptions: Option<Setting>,
}

/// A proxy, and the variable that names it. Neither `Debug` nor `Display` shows its credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    url: Url,
    variable: &'static str,
}

/// The way to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Direct(WhyDirect),
    Through(Proxy),
}

/// Reason why an address is reached without a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyDirect {
    /// The user has set no proxy for its scheme.
    NoProxy,
    /// The user has listed it in this variable.
    Excepted(&'static str),
    /// It is this machine's own, and the proxy is on another machine, where it would mean that machine.
    ThisMachine,
    /// It is link-local, and means something else on each machine.
    LinkLocal,
}

/// A variable whose value is not the address of a proxy. The value is not shown, because it may contain a
/// password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{variable} is not the address of a proxy: {reason}; give http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, with %40 for @, \
     %3A for :, %2F for /, %23 for # and %3F for ? in the password"
)]
pub struct ProxyError {
    variable: &'static str,
    reason: String,
}

/// Reason why a proxy gives no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyFault {
    #[error("the proxy {proxy} can't be reached: {reason}")]
    Unreachable { proxy: Proxy, reason: String },
    /// The proxy answered 407.
    #[error("the proxy {proxy} {}", if proxy.has_credentials() { "does not accept its credentials" } else { "wants credentials" })]
    Credentials { proxy: Proxy },
    /// The proxy answered that it makes no connection.
    #[error("the proxy {proxy} answered {status} instead of a connection to {target}")]
    Refused {
        proxy: Proxy,
        /// Host and port that the proxy was asked for.
        target: String,
        /// HTTP status of its answer.
        status: u16,
    },
}

impl ProxyFault {
    /// Returns the class of the fault for a retry.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable { .. } => Class::Transient,
            Self::Refused { status, .. } if *status >= 500 || *status == 429 => Class::Transient,
            Self::Credentials { .. } | Self::Refused { .. } => Class::Permanent,
        }
    }

    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        match self {
            Self::Unreachable { proxy, .. } | Self::Credentials { proxy } | Self::Refused { proxy, .. } => {
                proxy
            }
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address(), self.variable)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl Proxies {
    /// Reads the variables; `value` returns that of one, and an empty one if it is set to nothing. An empty
    /// variable for one scheme leaves the choice to `ALL_PROXY`.
    #[must_use]
    pub fn of(value: impl Fn(&str) -> Option<String>) -> Self {
        let first = |variables: [&'static str; 2]| {
            let set = variables.into_iter().find_map(|variable| Some((variable, value(variable)?)));
            set.filter(|(_, value)| !value.trim().is_empty())
                .map(|(variable, value)| Setting { variable, value: value.trim().to_owned() })
        };
        let all = || first(["ALL_PROXY", "all_proxy"]);
        Self {
            http: first(["HTTP_PROXY", "http_proxy"]).or_else(all),
            https: first(["HTTPS_PROXY", "https_proxy"]).or_else(all),
            exceptions: first(["NO_PROXY", "no_proxy"]),
        }
    }

    /// Returns the way to `target`.
    ///
    /// # Errors
    /// If the variable that counts for it is not the address of an HTTP proxy.
    pub fn route(&self, target: &Url) -> Result<Route, ProxyError> {
        if is_link_local(target) {
            return Ok(Route::Direct(WhyDirect::LinkLocal));
        }
        let setting = if target.scheme() == "https" { &self.https } else { &self.http };
        let Some(setting) = setting else { return Ok(Route::Direct(WhyDirect::NoProxy)) };
        if let Some(exceptions) = &self.exceptions
            && is_excepted(&exceptions.value, target)
        {
            return Ok(Route::Direct(WhyDirect::Excepted(exceptions.variable)));
        }
        let proxy = Proxy::parse(setting)?;
        if is_this_machine(target) && !is_this_machine(&proxy.url) {
            return Ok(Route::Direct(WhyDirect::ThisMachine));
        }
        Ok(Route::Through(proxy))
    }
}

fn is_link_local(target: &Url) -> bool {
    match target.host() {
        Some(Host::Ipv4(address)) => address.is_link_local(),
        Some(Host::Ipv6(address)) => address.is_unicast_link_local(),
        Some(Host::Domain(_)) | None => false,
    }
}

/// True if a list of exceptions contains the host of `target`: as a name, as a domain above it, as an address
/// or a network, or by `*`.
fn is_excepted(exceptions: &str, target: &Url) -> bool {
    // The library takes the asterisk for all names, but for no addresses.
    if exceptions.split(',').any(|exception| exception.trim() == "*") {
        return true;
    }
    let Ok(uri) = target.as_str().parse() else { return false };
    let matcher = Matcher::builder().all("http://proxy.invalid").no(exceptions).build();
    matcher.intercept(&uri).is_none()
}

impl Proxy {
    fn parse(Setting { variable, value }: &Setting) -> Result<Self, ProxyError> {
        let invalid = |reason: String| ProxyError { variable, reason };
        // As curl takes it, an address without a scheme is that of an HTTP proxy.
        let text = if value.contains("://") { value.clone() } else { format!("http://{value}") };
        let url: Url = text.parse().map_err(|err: url::ParseError| invalid(err.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(invalid(format!("proxies of the kind {}:// are not supported", url.scheme())));
        }
        let is_bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        if url.host_str().is_none() || !is_bare {
            return Err(invalid("there is more in it than a host and a port".to_owned()));
        }
        Ok(Self { url, variable })
    }

    /// Returns the address with its credentials, for the client that connects. It must not be printed.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Returns the address without its credentials, as in `http://proxy.example:3128`.
    #[must_use]
    pub fn address(&self) -> String {
        without_credentials(&self.url)
    }

    /// Returns the name of the variable that names the proxy.
    #[must_use]
    pub fn variable(&self) -> &'static str {
        self.variable
    }

    #[must_use]
    pub fn has_credentials(&self) -> bool {
        !self.url.username().is_empty() || self.url.password().is_some()
    }

    /// Asks the proxy for a connection to `target`. Returns the reason if it gives none. A proxy that is
    /// itself reached over TLS is only connected to, and so is one that would get the request as a whole,
    /// because `target` is not reached over TLS.
    pub async fn examine(&self, target: &Url) -> Option<ProxyFault> {
        self.try_connection(target).await.err()
    }

    async fn try_connection(&self, target: &Url) -> Result<(), ProxyFault> {
        let unreachable = |reason: String| ProxyFault::Unreachable { proxy: self.clone(), reason };
        let silent = |_| unreachable(format!("no answer within {} s", PATIENCE.as_secs()));
        let broken = |err: std::io::Error| unreachable(err.to_string());
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let connecting = TcpStream::connect((host, self.url.port_or_known_default().unwrap_or(80)));
        let mut stream = tokio::time::timeout(PATIENCE, connecting).await.map_err(silent)?.map_err(broken)?;
        if target.scheme() != "https" || self.url.scheme() == "https" {
            return Ok(());
        }
        let host = target.host_str().unwrap_or_default();
        let wanted = format!("{host}:{}", target.port_or_known_default().unwrap_or(443));
        let question = self.question(&wanted);
        let asked = async {
            stream.write_all(question.as_bytes()).await?;
            first_line(&mut stream).await
        };
        let line = tokio::time::timeout(PATIENCE, asked).await.map_err(silent)?.map_err(broken)?;
        match status_of(&line) {
            Some(200..=299) => Ok(()),
            Some(407) => Err(ProxyFault::Credentials { proxy: self.clone() }),
            Some(status) => Err(ProxyFault::Refused { proxy: self.clone(), target: wanted, status }),
            None => Err(unreachable("it does not answer as an HTTP proxy".to_owned())),
        }
    }

    /// Returns the request for a connection to `wanted`, a host and port.
    fn question(&self, wanted: &str) -> String {
        // The library that the clients use builds the same header from the same address.
        let matcher = Matcher::builder().all(self.url.as_str().to_owned()).build();
        let intercept = "https://host.invalid".parse().ok().and_then(|uri| matcher.intercept(&uri));
        let credentials = intercept
            .as_ref()
            .and_then(|intercept| intercept.basic_auth()?.to_str().ok())
            .map_or_else(String::new, |basic| format!("Proxy-Authorization: {basic}\r\n"));
        format!("CONNECT {wanted} HTTP/1.1\r\nHost: {wanted}\r\n{credentials}\r\n")
    }
}

/// Returns the beginning of an answer, up to the end of its first line.
async fn first_line(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut piece = [0; 512];
    while !answer.contains(&b'\n') && answer.len() < LONGEST_ANSWER {
        let read = stream.read(&mut piece).await?;
        if read == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..read]);
    }
    Ok(answer)
}

fn status_of(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line.split(|&byte| byte == b'\r').next()?).ok()?;
    line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
}

/// Returns scheme, host and port of an address.
fn without_credentials(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port_or_known_default() {
        Some(port) => format!("{}://{host}:{port}", url.scheme()),
        None => format!("{}://{host}", url.scheme()),
    }
}

/// Returns the value of a variable in a form that may be printed: an address without its credentials, or
/// `***` for a value that is no address. A list of exceptions has no secrets.
#[must_use]
pub fn printable(variable: &str, value: &str) -> String {
    if variable.eq_ignore_ascii_case("NO_PROXY") {
        return value.to_owned();
    }
    let known = VARIABLES.into_iter().find(|known| *known == variable).unwrap_or_default();
    match Proxy::parse(&Setting { variable: known, value: value.to_owned() }) {
        Ok(proxy) if proxy.has_credentials() => proxy.address().replacen("://", "://***@", 1),
        Ok(proxy) => proxy.address(),
        Err(_) => "***".to_owned(),
    }
}

impl Route {
    /// Returns the proxy, if there is one on the way.
    #[must_use]
    pub fn proxy(&self) -> Option<&Proxy> {
        match self {
            Self::Through(proxy) => Some(proxy),
            Self::Direct(_) => None,
        }
    }

    /// Returns the reason why the proxy on the way to `target` gives no connection, if there is a proxy and
    /// it gives none. Meant for after a failure, because clients don't report the proxy's answer.
    pub async fn fault(&self, target: &Url) -> Option<Box<ProxyFault>> {
        self.proxy()?.examine(target).await.map(Box::new)
    }

    /// Returns the fault that a response with this status means, if it comes from a proxy on the way.
    #[must_use]
    pub fn fault_of_status(&self, status: u16) -> Option<Box<ProxyFault>> {
        let proxy = self.proxy().filter(|_| status == 407)?.clone();
        Some(Box::new(ProxyFault::Credentials { proxy }))
    }

    /// Returns `reason`, with the proxy on the way.
    #[must_use]
    pub fn explain(&self, reason: String) -> String {
        match self {
            Self::Through(proxy) => format!("through the proxy {proxy}: {reason}"),
            Self::Direct(_) => reason,
        }
    }
}

impl Default for Route {
    fn default() -> Self {
        Self::Direct(WhyDirect::NoProxy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(variables: &[(&str, &str)], target: &str) -> Result<Route, ProxyError> {
        let value = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Proxies::of(value).route(&target.parse().expect("a URL"))
    }

    /// Returns the address of the proxy, or the reason for none.
    fn way(variables: &[(&str, &str)], target: &str) -> String {
        match route(variables, target).expect("valid variables") {
            Route::Through(proxy) => proxy.to_string(),
            Route::Direct(why) => format!("{why:?}"),
        }
    }

    #[test]
    fn each_scheme_has_its_variable_and_all_is_for_the_rest() {
        let both = [("HTTPS_PROXY", "http://a:1"), ("ALL_PROXY", "http://b:2")];
        assert_eq!(way(&both, "https://iam.cloud.ibm.com"), "http://a:1 (HTTPS_PROXY)");
        assert_eq!(way(&both, "http://s3.example"), "http://b:2 (ALL_PROXY)");
        assert_eq!(way(&both[..1], "http://s3.example"), "NoProxy");
    }

    #[test]
    fn capitals_count_first_even_if_empty() {
        let lower = ("https_proxy", "http://b:2");
        assert_eq!(way(&[lower], "https://x"), "http://b:2 (https_proxy)");
        assert_eq!(way(&[("HTTPS_PROXY", "http://a:1"), lower], "https://x"), "http://a:1 (HTTPS_PROXY)");
        assert_eq!(way(&[("HTTPS_PROXY", ""), lower], "https://x"), "NoProxy");
    }

    #[test]
    fn exceptions_are_names_domains_networks_or_everything() {
        for (exceptions, target, is_excepted) in [
            ("cloud.ibm.com", "https://iam.cloud.ibm.com", true),
            (".cloud.ibm.com", "https://iam.cloud.ibm.com", true),
            ("IAM.cloud.ibm.com", "https://iam.cloud.ibm.com", true),
            ("ibm.com", "https://notibm.com", false),
            ("10.0.0.0/8, x", "https://10.1.2.3:443", true),
            ("10.0.0.0/8", "https://11.1.2.3", false),
            ("*", "https://anything", true),
            ("x, *", "https://10.1.2.3", true),
            ("", "https://anything", false),
        ] {
            let found = way(&[("ALL_PROXY", "http://a:1"), ("no_proxy", exceptions)], target);
            assert_eq!(found == "Excepted(\"no_proxy\")", is_excepted, "{exceptions} {target}: {found}");
        }
    }

    #[test]
    fn link_local_addresses_never_go_through_a_proxy() {
        let all = [("ALL_PROXY", "http://127.0.0.1:1")];
        assert_eq!(way(&all, "http://169.254.169.254"), "LinkLocal");
        assert_eq!(way(&all, "http://[fe80::1]"), "LinkLocal");
    }

    #[test]
    fn a_remote_proxy_is_not_asked_for_this_machine() {
        for target in ["http://127.0.0.1:9000", "http://localhost:9000", "http://[::1]:9000"] {
            assert_eq!(way(&[("ALL_PROXY", "http://proxy:1")], target), "ThisMachine");
            assert_eq!(way(&[("ALL_PROXY", "127.0.0.1:1")], target), "http://127.0.0.1:1 (ALL_PROXY)");
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_its_password() {
        for value in [
            "http://user:hunter2#x@proxy:3128",
            "http://user:hunter2@proxy:port",
            "http://proxy:3128/hunter2",
            "socks5://user:hunter2@proxy:1080",
            "http://",
            "http://user:hunter2@",
            "::hunter2",
        ] {
            let err = route(&[("HTTPS_PROXY", value)], "https://x").expect_err(value).to_string();
            assert!(err.starts_with("HTTPS_PROXY is not the address of a proxy: "), "{err}");
            assert!(err.contains("give http://HOST:PORT") && !err.contains("hunter2"), "{err}");
            assert_eq!(printable("HTTPS_PROXY", value), "***");
        }
        // It does not count for this address.
        assert_eq!(way(&[("HTTPS_PROXY", "socks5://a")], "http://x"), "NoProxy");
    }

    #[test]
    fn no_form_of_printing_shows_credentials() {
        let value = "http://user:hunter2@proxy:3128";
        let proxies = Proxies::of(|name| (name == "ALL_PROXY").then(|| value.to_owned()));
        let route = proxies.route(&"https://x".parse().expect("a URL")).expect("a route");
        let proxy = route.proxy().expect("a proxy").clone();
        let fault = ProxyFault::Credentials { proxy };
        for text in [format!("{proxies:?}"), format!("{route:?}"), format!("{fault:?} {fault}")] {
            assert!(!text.contains("hunter2") && !text.contains("user"), "{text}");
        }
        assert_eq!(printable("ALL_PROXY", value), "http://***@proxy:3128");
        assert_eq!(printable("no_proxy", "a, b"), "a, b");
    }

    #[test]
    fn credentials_are_sent_decoded() {
        let setting = Setting { variable: "HTTPS_PROXY", value: "http://us%40er:p%3Aw@proxy:1".to_owned() };
        let question = Proxy::parse(&setting).expect("a proxy").question("x:443");
        // base64 of "us@er:p:w"
        assert!(question.contains("\r\nProxy-Authorization: Basic dXNAZXI6cDp3\r\n"), "{question}");
    }
}
