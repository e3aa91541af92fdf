//! Parts that are copied from another object, with the lies of stores that copy something else.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::ops::Range;

use s3s::dto::{CopyPartResult, UploadPartCopyInput, UploadPartCopyOutput};
use s3s::{S3Error, S3Request, S3Response, S3Result};
use snapferry_base::units::{to_u64, to_usize};

use super::digests::{Algorithm, Claims};
use super::dto::{Quirks, SourceCondition, SourceRange, copy_range, set_checksum, signed, source, too_large};
use super::folder::{Conditions, Folder, Object, etag, precondition};
use super::receive::{Sink as _, blocking};
use super::stats::CopiedBytes;
use super::store::COPY_PIECE;
use super::uploads::{Upload, part_number};

/// Handles an UploadPartCopy.
pub(super) async fn part(
    folder: &Folder,
    req: S3Request<UploadPartCopyInput>,
) -> S3Result<S3Response<UploadPartCopyOutput>> {
    let quirks = Quirks::of(&req);
    let copied: CopiedBytes = req.extensions.get().cloned().unwrap_or_default();
    let input = req.input;
    let number = part_number(input.part_number)?;
    let (from_bucket, from_key) = source(&input.copy_source)?;
    let from = folder.bucket(from_bucket)?;
    let from_key = from_key.to_owned();
    let bucket = folder.bucket(&input.bucket)?;
    let upload = bucket.upload(&input.key, &input.upload_id)?;
    let scheme = upload.scheme();
    let conditions =
        Conditions { if_match: input.copy_source_if_match, if_none_match: input.copy_source_if_none_match };
    let requested = input.copy_source_range;
    let part = blocking(move || {
        let (object, mut file) = from.open_object(&from_key)?;
        check_condition(&conditions, &object, quirks.condition)?;
        let range = range_of(requested.as_deref(), object.size, quirks.range)?;
        let mut remaining = range.end - range.start;
        too_large(signed(remaining))?;
        file.seek(SeekFrom::Start(range.start)).map_err(S3Error::internal_error)?;
        let mut landing = Upload::land(&upload, number, Some(remaining), &bucket)?;
        let mut tally = Claims::default().tally(scheme.map(|scheme| scheme.algorithm));
        let mut buf = vec![0; to_usize(remaining.min(to_u64(COPY_PIECE)))];
        while remaining > 0 {
            let len = to_usize(remaining.min(to_u64(buf.len())));
            file.read_exact(&mut buf[..len]).map_err(S3Error::internal_error)?;
            landing.write(&buf[..len]).map_err(S3Error::internal_error)?;
            tally.update(&buf[..len]);
            copied.add(to_u64(len));
            remaining -= to_u64(len);
        }
        upload.put(number, landing, tally.finish(), &bucket.drafts())
    })
    .await?;
    let mut result = CopyPartResult {
        e_tag: Some(etag(&part.etag)),
        last_modified: Some(part.modified.into()),
        ..CopyPartResult::default()
    };
    if let Some((algorithm, checksum)) = part.checksum(scheme).filter(|_| scheme.is_some()) {
        set_checksum!(result, algorithm, quirks.checksum_to_send(checksum));
    }
    Ok(S3Response::new(UploadPartCopyOutput {
        copy_part_result: Some(result),
        ..UploadPartCopyOutput::default()
    }))
}

fn check_condition(conditions: &Conditions, object: &Object, quirk: SourceCondition) -> S3Result<()> {
    let unmet = || precondition("x-amz-copy-source-if-match");
    match quirk {
        SourceCondition::Checked => conditions.allow_read(object).map_err(|_| unmet()),
        SourceCondition::Ignored => Ok(()),
        SourceCondition::Refused if conditions.if_match.is_some() => Err(unmet()),
        SourceCondition::Refused => Ok(()),
    }
}

/// Returns the range that is copied of an object of `size` bytes.
fn range_of(requested: Option<&str>, size: u64, quirk: SourceRange) -> S3Result<Range<u64>> {
    match quirk {
        SourceRange::Exact => copy_range(requested, size),
        SourceRange::Clipped => {
            let range = copy_range(requested, u64::MAX)?;
            Ok(range.start.min(size)..range.end.min(size))
        }
        SourceRange::Short(bytes) => {
            let range = copy_range(requested, size)?;
            Ok(range.start..range.end.min(range.start.saturating_add(bytes)))
        }
    }
}
