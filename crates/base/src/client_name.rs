//! Name of this program in its requests, by which the logs of a server or a proxy show it.

/// Version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Returns the `User-Agent` of requests to IBM Cloud: `snapferry/VERSION (OS; ARCHITECTURE)`.
#[must_use]
pub fn user_agent() -> String {
    format!("snapferry/{VERSION} ({}; {})", std::env::consts::OS, std::env::consts::ARCH)
}

/// Returns the name without the characters that the AWS SDK and Redis refuse in names: `snapferry-VERSION`.
#[must_use]
pub fn plain() -> String {
    format!("snapferry-{VERSION}")
}
