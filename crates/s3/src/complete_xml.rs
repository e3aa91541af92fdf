//! Check that the XML of a response is complete.
//!
//! The SDK parses as much as it can: for an incomplete list it returns the entries that arrived, as if these
//! were all. So for each successful response this module checks that the document ends with the closing tag
//! of its root element.

use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::AfterDeserializationInterceptorContextRef;

/// Checks each response whose body the SDK has read. Objects are streams, which it has not read.
#[derive(Debug)]
pub(super) struct CompleteXml;

impl Intercept for CompleteXml {
    fn name(&self) -> &'static str {
        "WholeAnswers"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        if response.status().is_success() && response.body().bytes().is_some_and(is_cut_off) {
            return Err("the answer broke off before its end".into());
        }
        Ok(())
    }
}

/// True if a document begins with an element that is not closed at its end. An empty document, or one that
/// isn't XML, is accepted here.
fn is_cut_off(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body);
    let mut rest = text.trim_start_matches('\u{feff}').trim();
    // Skip the XML declaration and comments.
    let mut declared = false;
    while let Some(after) = rest.strip_prefix("<?").or_else(|| rest.strip_prefix("<!")) {
        let Some((_, after)) = after.split_once('>') else { return true };
        rest = after.trim_start();
        declared = true;
    }
    let Some(root) = rest.strip_prefix('<') else { return declared };
    let Some((start, _)) = root.split_once('>') else { return true };
    if start.ends_with('/') {
        return false;
    }
    let name = start.split(char::is_whitespace).next().unwrap_or_default();
    let closed = rest.strip_suffix('>').map(str::trim_end).and_then(|rest| rest.strip_suffix(name));
    !closed.is_some_and(|rest| rest.ends_with("</"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_cut_anywhere_is_not_whole() {
        let document = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListPartsResult xmlns=\"http://s3\"><Part><PartNumber>1</PartNumber></Part>\
                     <IsTruncated>false</IsTruncated></ListPartsResult>\n";
        let content = document.trim_end().len();
        for cut in 1..content {
            assert!(is_cut_off(&document.as_bytes()[..cut]), "cut at {cut}: {}", &document[..cut]);
        }
        for complete in [
            document,
            &document[..content],
            "<A/>",
            "<!-- x --><A b=\"c\" />",
            "<A></A >",
            "",
            "no XML",
            "{}",
        ] {
            assert!(!is_cut_off(complete.as_bytes()), "{complete}");
        }
    }
}
