//! Resuming an upload that an earlier run has left: what the store holds already is not sent again.
//!
//! A run that resumes reads and compresses everything anew. A part stays in the store only if the store's own
//! record of it proves that it has the bytes of the part that was just made. So no state of the earlier run
//! is needed, and none is trusted: a disk that has changed meanwhile matches nothing.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use snapferry_base::retry::chain;
use snapferry_base::units::to_u64;

use crate::store::{
    CopiedPart, ObjectKey, ObjectStore, OpenUpload, Part, PartNumber, StoreError, StoredPart, Upload,
};

/// Number of parts that must differ, with none that matched before, until an upload is not worth resuming:
/// the source is another one, or has changed near its beginning, which shifts all that follows.
pub const HOPELESS: u32 = 3;

/// Open uploads of a key.
#[derive(Debug)]
pub struct KeyUploads {
    /// The upload to resume: the newest one whose parts the store lists.
    pub resumed: Option<Resumed>,
    /// All other uploads of the key, newest first. They are of no use, and the caller aborts them.
    pub others: Vec<Upload>,
}

/// Upload of an earlier run, and what the store holds of it.
#[derive(Debug)]
pub struct Resumed {
    pub upload: Upload,
    held: BTreeMap<PartNumber, StoredPart>,
    kept: u32,
    differing: u32,
}

/// Finds the upload of exactly `key` to resume. The caller must be the only one that works on the key: the
/// upload may be another process's, which is still at work.
///
/// # Errors
/// If the uploads can't be listed, or the parts of one can't be listed for a reason that may pass.
pub async fn find(store: &dyn ObjectStore, key: &ObjectKey) -> Result<KeyUploads, StoreError> {
    let mut found = KeyUploads { resumed: None, others: Vec::new() };
    for upload in newest_first(key, store.list_uploads(key.as_str()).await?) {
        if found.resumed.is_some() {
            found.others.push(upload);
            continue;
        }
        match store.list_parts(&upload).await {
            Ok(parts) => found.resumed = Some(Resumed::new(upload, parts)),
            Err(error @ StoreError::Cancelled { .. }) => return Err(error),
            Err(error) if error.class().is_retryable() => return Err(error),
            Err(error) => {
                tracing::warn!(upload = upload.id, "an upload can't be resumed: {}", chain(&error));
                found.others.push(upload);
            }
        }
    }
    Ok(found)
}

/// Returns the uploads of exactly `key`, newest first. Those without a time come last.
fn newest_first(key: &ObjectKey, open: Vec<OpenUpload>) -> Vec<Upload> {
    let mut open: Vec<OpenUpload> = open.into_iter().filter(|open| open.upload.key == *key).collect();
    open.sort_by(|a, b| (Reverse(a.started), &a.upload.id).cmp(&(Reverse(b.started), &b.upload.id)));
    open.into_iter().map(|open| open.upload).collect()
}

impl Resumed {
    /// Makes the record of an upload from the store's list of its parts.
    #[must_use]
    pub fn new(upload: Upload, parts: Vec<StoredPart>) -> Self {
        let held = parts.into_iter().map(|part| (part.number, part)).collect();
        Self { upload, held, kept: 0, differing: 0 }
    }

    /// Returns the number of parts that the store holds.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Returns the store's record of a part that need not be sent, or `None` if it must be: the store has no
    /// part of that number, or not provably the same one. May compute an MD5 of the part, so it is called
    /// where a thread may block.
    pub fn keep(&mut self, store: &dyn ObjectStore, part: &Part) -> Option<StoredPart> {
        let held = self.held.get(&part.number)?;
        let is_same = held.size == to_u64(part.body.len()) && store.proves(held, part);
        self.decide(part.number, is_same)
    }

    /// Returns the store's record of a part that need not be copied again, or `None` if it must be. Without
    /// the bytes only the checksum that the store lists proves a part.
    pub fn keep_copy(&mut self, part: &CopiedPart) -> Option<StoredPart> {
        let held = self.held.get(&part.number)?;
        // A store that lists no checksums says nothing about the source.
        let listed = held.crc64?;
        let is_same = held.size == part.len() && listed == part.crc64;
        self.decide(part.number, is_same)
    }

    fn decide(&mut self, number: PartNumber, is_same: bool) -> Option<StoredPart> {
        if is_same {
            self.kept += 1;
            self.held.get(&number).cloned()
        } else {
            self.differing += 1;
            None
        }
    }

    /// True if the first parts that were compared all differ. The caller then aborts the upload and begins a
    /// new one.
    #[must_use]
    pub fn is_hopeless(&self) -> bool {
        self.kept == 0 && self.differing >= HOPELESS
    }

    /// Returns the first part that the store holds behind `last`, the last part of the image. It can't be
    /// removed from the upload, and stores differ in what they do with a part that the completion leaves out:
    /// so the upload can't be completed, and the caller begins a new one.
    #[must_use]
    pub fn first_behind(&self, last: PartNumber) -> Option<&StoredPart> {
        self.held.range(PartNumber(last.0.saturating_add(1))..).next().map(|(_, part)| part)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn uploads_of_exactly_the_key_come_newest_first() {
        let at = |seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        let key = |text: &str| ObjectKey::new(text).expect("a key");
        let open = |name: &str, id: &str, started| OpenUpload {
            upload: Upload { key: key(name), id: id.to_owned() },
            started,
        };
        let listed = vec![
            open("disk.qcow2", "old", at(10)),
            open("disk.qcow2.manifest", "of the manifest", at(90)),
            open("disk.qcow2", "unknown", None),
            open("disk.qcow2", "new", at(30)),
            open("disk.qcow2", "also old", at(10)),
        ];
        let sorted = newest_first(&key("disk.qcow2"), listed);
        let ids: Vec<&str> = sorted.iter().map(|upload| upload.id.as_str()).collect();
        assert_eq!(ids, ["new", "also old", "old", "unknown"]);
    }
}
