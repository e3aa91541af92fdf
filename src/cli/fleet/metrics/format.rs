//! Text formats of the metrics, and the choice between them that a client makes by its headers.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderName};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

/// Text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own format, which every scraper reads.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// Returns the format that a client prefers. Prometheus' own format, unless the client names OpenMetrics
    /// and likes it as much.
    pub fn preferred(headers: &HeaderMap) -> Self {
        let wanted = weights(headers, &ACCEPT);
        let weight = |name: &str| {
            let of_name = wanted.iter().filter(|wanted| wanted.name == name && wanted.is_known_version());
            of_name.map(|wanted| wanted.weight).reduce(f64::max)
        };
        let open_metrics = weight("application/openmetrics-text").unwrap_or(0.0);
        let plain = weight("text/plain").or_else(|| weight("text/*")).or_else(|| weight("*/*"));
        if open_metrics > 0.0 && open_metrics >= plain.unwrap_or(0.0) {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// Returns the content type by which scrapers recognise the format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Returns the metrics as text.
    pub fn encode(self, registry: &Registry) -> String {
        let mut output = String::new();
        // Writing into a string fails only if a metric's own code returns an error; then the text so far is
        // better than none.
        let _ = match self {
            Self::Prometheus => prometheus_text::encode(&mut output, registry),
            Self::OpenMetrics => text::encode(&mut output, registry),
        };
        output
    }
}

/// True if the client reads gzip.
pub fn reads_gzip(headers: &HeaderMap) -> bool {
    weights(headers, &ACCEPT_ENCODING).iter().any(|wanted| wanted.name == "gzip" && wanted.weight > 0.0)
}

/// Returns a text compressed with gzip. None if that fails, which the plain text replaces.
pub fn gzip(text: &str) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).ok()?;
    encoder.finish().ok()
}

/// One item of a header that lists what a client reads (RFC 9110, 12.4.2).
struct Wanted {
    name: String,
    version: Option<String>,
    /// Preference from 0, which excludes the item, to 1.
    weight: f64,
}

impl Wanted {
    /// True unless the item asks for a version of OpenMetrics that this server does not write.
    fn is_known_version(&self) -> bool {
        self.name != "application/openmetrics-text"
            || self.version.as_deref().is_none_or(|version| matches!(version, "1.0.0" | "0.0.1"))
    }
}

fn weights(headers: &HeaderMap, name: &HeaderName) -> Vec<Wanted> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(read).collect()
}

fn read(item: &str) -> Wanted {
    let mut parts = item.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default().to_ascii_lowercase();
    let (mut version, mut weight) = (None, 1.0);
    for (key, value) in parts.filter_map(|part| part.split_once('=')) {
        match key.trim().to_ascii_lowercase().as_str() {
            "q" => weight = value.trim().parse().unwrap_or(0.0),
            "version" => version = Some(value.trim().trim_matches('"').to_owned()),
            _ => {}
        }
    }
    Wanted { name, version, weight }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn preferred(accept: &'static str) -> Format {
        Format::preferred(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]))
    }

    #[test]
    fn a_client_that_names_no_format_gets_prometheus_own() {
        assert_eq!(Format::preferred(&HeaderMap::new()), Format::Prometheus);
        assert_eq!(preferred("*/*"), Format::Prometheus);
        assert_eq!(preferred("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"), Format::Prometheus);
    }

    #[test]
    fn prometheus_servers_get_openmetrics() {
        // Header of Prometheus 2.42, as its server sends it.
        let sent = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;\
                    q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(preferred(sent), Format::OpenMetrics);
    }

    #[test]
    fn the_weight_decides() {
        assert_eq!(
            preferred("application/openmetrics-text;q=0.4, text/plain;version=0.0.4;q=0.5"),
            Format::Prometheus
        );
        assert_eq!(preferred("application/openmetrics-text; q=0, */*"), Format::Prometheus);
        assert_eq!(preferred("Application/OpenMetrics-Text"), Format::OpenMetrics);
    }

    #[test]
    fn an_unknown_version_of_openmetrics_is_not_promised() {
        assert_eq!(
            preferred("application/openmetrics-text;version=2.0.0,text/plain;q=0.3"),
            Format::Prometheus
        );
    }

    #[test]
    fn gzip_is_used_only_if_the_client_reads_it() {
        let reads =
            |value| reads_gzip(&HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))]));
        assert!(reads("deflate, gzip;q=0.5"));
        assert!(!reads("gzip;q=0, identity"));
        assert!(!reads("br"));
        assert!(!reads_gzip(&HeaderMap::new()));
    }
}
