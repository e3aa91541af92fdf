//! Check of the copies that a bucket makes of parts of its objects. Runs that send only what changed need
//! them, and stores differ in every detail.
//!
//! The objects and uploads of this check are removed at the end, whatever the store answers.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use snapferry_base::clock::SystemClock;
use snapferry_base::retry::chain;
use snapferry_base::units::{ByteCount, MIB, to_u64, to_usize};
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::{
    CopiedPart, CopySource, ETag, ExpectedObject, MIN_PART, ObjectKey, ObjectStore, Operation, Overwrite,
    Pace, Part, PartNumber, Retrying, StoreError, StoredPart, Upload, UploadPlan,
};
use snapferry_s3::S3Store;

use super::{DoctorArgs, Findings, HASTY, store_args};
use crate::cli::config;
use crate::cli::error::{CommandError, CommandResult, UsageError};
use crate::cli::exit::{Code, sentence};
use crate::cli::session::Session;

/// Size of the object that is copied from: a part of the least size, and a MiB for odd ranges.
const SOURCE: u64 = MIN_PART.0 + MIB;
/// What to do about a store that does not copy.
const SENDS_ALL: &str = "every run sends the whole image to it";
/// Offset that lies on no edge of any block.
const ODD: u64 = 777;

/// Checks the copies of the bucket that the user names.
pub(super) async fn check(args: &DoctorArgs, session: &Session, findings: &mut Findings) {
    let Some(bucket) = &args.recovery.bucket else {
        let fix = "give --bucket NAME to try its copies".to_owned();
        return findings.failure("copies", Code::Usage, "no bucket named", Some(fix));
    };
    let trial = match Trial::new(args, bucket, session) {
        Ok(trial) => trial,
        Err(error) => return findings.failed("copies", Code::Store, &error),
    };
    let tried = trial.run(findings).await;
    let removed = trial.remove().await;
    for error in [tried.err(), removed.err()].into_iter().flatten() {
        findings.failed("copies", Code::Store, &error.into());
    }
}

/// Trial of one bucket.
struct Trial {
    /// Client without retries: some requests are meant to fail.
    bare: Arc<S3Store>,
    store: Retrying,
    source: ObjectKey,
    target: ObjectKey,
    /// Uploads that have neither been completed nor aborted.
    open: Mutex<Vec<Upload>>,
}

/// Object that parts are copied from, and its bytes.
struct Source {
    from: CopySource,
    bytes: Bytes,
}

impl Source {
    fn part(&self, number: u32, at: u64, start: u64, len: u64) -> CopiedPart {
        let range = start..start + len;
        let crc64 = Crc64::of(&self.bytes[to_usize(range.start)..to_usize(range.end)]);
        CopiedPart { number: PartNumber(number), at, range, crc64 }
    }
}

/// Upload of this trial: the parts that the store holds, and the bytes that they must make.
struct Draft {
    upload: Upload,
    parts: Vec<StoredPart>,
    bytes: Vec<u8>,
}

impl Draft {
    fn at(&self) -> u64 {
        to_u64(self.bytes.len())
    }

    fn next(&self) -> u32 {
        self.parts.last().map_or(1, |part| part.number.0 + 1)
    }

    fn expected(&self) -> ExpectedObject {
        ExpectedObject { size: self.at(), crc64: Crc64::of(&self.bytes), replaces: None }
    }
}

impl Trial {
    fn new(args: &DoctorArgs, bucket: &str, session: &Session) -> CommandResult<Self> {
        let config = config::s3_config(bucket, &store_args(args), &session.environment, None)?;
        let bare = Arc::new(S3Store::connect(config)?);
        let store = Retrying::new(
            bare.clone(),
            Arc::new(SystemClock),
            session.cancel.clone(),
            Pace::new(1),
            HASTY.backoff,
        );
        let prefix = format!("snapferry-doctor-{:016x}", rand::random::<u64>());
        let key = |name: &str| {
            ObjectKey::new(&format!("{prefix}/{name}")).map_err(|error| UsageError(error.to_string()))
        };
        Ok(Self { bare, store, source: key("source")?, target: key("target")?, open: Mutex::default() })
    }

    async fn run(&self, findings: &mut Findings) -> Result<(), StoreError> {
        let source = self.make_source().await?;
        let mut draft = self.begin(&self.target).await?;
        let Some(copied) = self.try_copy(&mut draft, &source, findings).await? else { return Ok(()) };
        checksums(&copied, findings);
        self.try_versions(&draft, &source, findings).await?;
        self.try_range(&draft, &source, findings).await?;
        self.try_sizes(draft, &source, findings).await?;
        self.try_small_part(&source, findings).await?;
        self.try_in_place(&source, findings).await
    }

    /// Uploads the source in parts, because some stores treat the copies of such an object differently.
    async fn make_source(&self) -> Result<Source, StoreError> {
        let mut draft = self.begin(&self.source).await?;
        let bytes = noise(SOURCE);
        self.send(&mut draft, bytes.slice(..to_usize(MIN_PART.0))).await?;
        self.send(&mut draft, bytes.slice(to_usize(MIN_PART.0)..)).await?;
        self.complete(&draft).await?;
        Ok(Source { from: self.found(&self.source).await?, bytes })
    }

    /// Makes the first copy, and compares the size that the list then shows. Returns the answer to the copy
    /// and the entry of the list, or `None` if the store does not copy.
    async fn try_copy(
        &self,
        draft: &mut Draft,
        source: &Source,
        findings: &mut Findings,
    ) -> Result<Option<Copied>, StoreError> {
        let part = source.part(1, 0, ODD, MIN_PART.0);
        let answered = match self.copy(draft, part.clone(), source).await {
            Ok(()) => draft.parts[0].clone(),
            Err(error @ StoreError::CopyRefused { .. }) => {
                let error = CommandError::from(error);
                let fix = error.hint().unwrap_or_else(|| SENDS_ALL.to_owned());
                findings.warning("copies", sentence(&error), fix);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let listed = self.store.list_parts(&draft.upload).await?;
        let Some(listed) = listed.into_iter().find(|listed| listed.number == part.number) else {
            findings.failure("copies", Code::Store, "confirmed, and not in the list of the parts", None);
            return Ok(None);
        };
        if listed.size != part.len() {
            let details = format!(
                "{} of {} bytes were copied: the store copies something else than the object",
                listed.size,
                part.len()
            );
            findings.failure("copies", Code::Store, details, None);
            return Ok(None);
        }
        findings.ok(
            "copies",
            format!("{} from an odd offset were copied inside the bucket", ByteCount(part.len())),
        );
        Ok(Some(Copied { answered, listed, wanted: part.crc64 }))
    }

    async fn try_versions(
        &self,
        draft: &Draft,
        source: &Source,
        findings: &mut Findings,
    ) -> Result<(), StoreError> {
        const WHAT: &str = "copy versions";
        let other =
            CopySource { etag: ETag("00000000000000000000000000000000".to_owned()), ..source.from.clone() };
        // The answer to the right version is known by now.
        let learnt = self.bare.refuses_copy_conditions();
        match self.bare.copy_part(&draft.upload, source.part(1, 0, ODD, MIN_PART.0), &other).await {
            Err(StoreError::Precondition { .. }) if learnt => findings
                .ok(WHAT, "a condition is refused even for the right version: HEAD requests take its place"),
            Err(StoreError::Precondition { .. }) => findings.ok(WHAT, "another version is not copied"),
            Ok(_) => findings.warning(
                WHAT,
                "the condition is ignored: another version would be copied",
                "give every image a key of its own, and let no other program replace it",
            ),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn try_range(
        &self,
        draft: &Draft,
        source: &Source,
        findings: &mut Findings,
    ) -> Result<(), StoreError> {
        const WHAT: &str = "copy ranges";
        // A caller that believes the source to be longer than it is.
        let longer = CopySource { size: SOURCE + 5, ..source.from.clone() };
        let within = source.part(2, 0, SOURCE - MIN_PART.0, MIN_PART.0);
        let beyond = CopiedPart { range: within.range.start..SOURCE + 5, ..within };
        match self.bare.copy_part(&draft.upload, beyond.clone(), &longer).await {
            Err(error) if error.class().is_retryable() => return Err(error),
            Err(_) => findings.ok(WHAT, "a range past the end is refused"),
            Ok(_) => {
                let listed = self.store.list_parts(&draft.upload).await?;
                let size = listed.iter().find(|part| part.number == beyond.number).map(|part| part.size);
                match size {
                    Some(size) if size < beyond.len() => {
                        findings.ok(WHAT, "a range past the end is shortened, and the list of the parts shows it");
                    }
                    _ => findings.failure(
                        WHAT,
                        Code::Store,
                        "a range past the end is accepted, and the list of the parts does not show what is missing",
                        None,
                    ),
                }
            }
        }
        Ok(())
    }

    /// Completes an object of copied and sent parts of three sizes, first with a wrong checksum.
    async fn try_sizes(
        &self,
        mut draft: Draft,
        source: &Source,
        findings: &mut Findings,
    ) -> Result<(), StoreError> {
        let second = source.part(2, draft.at(), 0, MIN_PART.0 + 1);
        self.copy(&mut draft, second, source).await?;
        self.send(&mut draft, Bytes::from_static(b"the last part")).await?;
        let expected = draft.expected();
        let wrong = ExpectedObject { crc64: Crc64(!expected.crc64.0), ..expected.clone() };
        let what = "copied objects";
        match self.bare.complete(&draft.upload, &draft.parts, &wrong).await {
            Ok(()) | Err(StoreError::Completed { .. }) => {
                self.forget(&draft.upload);
                let fix = "--verify compares the whole image; `replicate` always does";
                findings.warning(what, "completed with any checksum of the whole", fix);
            }
            Err(error) if error.class().is_retryable() && !error.is_damage() => return Err(error),
            Err(_) => match self.complete(&draft).await {
                Ok(()) => findings.ok(what, "completed only with the right checksum of the whole"),
                Err(error) if error.class().is_retryable() => return Err(error),
                Err(error) => {
                    let details = format!("parts of different sizes make no object: {}", chain(&error));
                    findings.warning(what, details, SENDS_ALL);
                    return Ok(());
                }
            },
        }
        let made = self.store.get_range(&self.target, 0..expected.size, None).await?;
        if made == draft.bytes {
            findings.ok(what, "parts of three sizes, copied and sent, have their bytes");
        } else {
            findings.failure(what, Code::Store, "parts that were copied and sent have other bytes", None);
        }
        self.store.delete(&self.target).await
    }

    /// Shows what becomes of a copy below the least size of a part that is not the last one. Runs make none.
    async fn try_small_part(&self, source: &Source, findings: &mut Findings) -> Result<(), StoreError> {
        let mut draft = self.begin(&self.target).await?;
        let small = source.part(1, 0, ODD, MIB);
        let refused = match self.copy(&mut draft, small, source).await {
            Err(error) if error.class().is_retryable() => return Err(error),
            Err(error) => Some(error),
            Ok(()) => {
                self.send(&mut draft, Bytes::from_static(b"the last part")).await?;
                match self.complete(&draft).await {
                    Err(error) if error.class().is_retryable() => return Err(error),
                    answer => answer.err(),
                }
            }
        };
        match refused {
            Some(error) => {
                findings.ok("small copies", format!("of {} are refused: {}", ByteCount(MIB), chain(&error)));
            }
            None => findings.ok("small copies", format!("of {} are accepted", ByteCount(MIB))),
        }
        self.store.delete(&self.target).await
    }

    /// Makes an object of its own older version, as a run that always writes under the same key does.
    async fn try_in_place(&self, source: &Source, findings: &mut Findings) -> Result<(), StoreError> {
        let mut draft = self.begin(&self.source).await?;
        let kept = source.part(1, 0, ODD, MIN_PART.0);
        self.copy(&mut draft, kept, source).await?;
        self.send(&mut draft, Bytes::from_static(b"the last part")).await?;
        let expected = draft.expected();
        self.complete(&draft).await?;
        let made = self.store.get_range(&self.source, 0..expected.size, None).await?;
        if made == draft.bytes {
            findings.ok("copies in place", "an object can be made of its own older version");
        } else {
            let details = "an object that is made of its own older version has other bytes";
            findings.failure("copies in place", Code::Store, details, None);
        }
        Ok(())
    }

    async fn begin(&self, key: &ObjectKey) -> Result<Draft, StoreError> {
        let plan = UploadPlan { part_size: MIN_PART, overwrite: Overwrite::Replace };
        let upload = self.store.create_upload(key, &plan).await?;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push(upload.clone());
        Ok(Draft { upload, parts: Vec::new(), bytes: Vec::new() })
    }

    async fn complete(&self, draft: &Draft) -> Result<(), StoreError> {
        self.store.complete(&draft.upload, &draft.parts, &draft.expected()).await?;
        self.forget(&draft.upload);
        Ok(())
    }

    fn forget(&self, ended: &Upload) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|open| open != ended);
    }

    async fn send(&self, draft: &mut Draft, body: Bytes) -> Result<(), StoreError> {
        let part = Part {
            number: PartNumber(draft.next()),
            at: draft.at(),
            crc64: Crc64::of(&body),
            body: body.clone(),
        };
        draft.parts.push(self.store.put_part(&draft.upload, part).await?);
        draft.bytes.extend_from_slice(&body);
        Ok(())
    }

    async fn copy(&self, draft: &mut Draft, part: CopiedPart, source: &Source) -> Result<(), StoreError> {
        let bytes = source.bytes.slice(to_usize(part.range.start)..to_usize(part.range.end));
        draft.parts.push(self.store.copy_part(&draft.upload, part, &source.from).await?);
        draft.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn found(&self, key: &ObjectKey) -> Result<CopySource, StoreError> {
        match self.store.head(key).await? {
            Some(meta) => Ok(CopySource { key: key.clone(), etag: meta.etag, size: meta.size }),
            None => Err(StoreError::NoSuchKey {
                operation: Operation { request: "HeadObject", target: self.store.url(key) },
            }),
        }
    }

    /// Removes both objects and every open upload of this trial.
    async fn remove(&self) -> Result<(), StoreError> {
        let mut removed = Ok(());
        for key in [&self.source, &self.target] {
            removed = removed.and(self.store.delete(key).await);
        }
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        for upload in open {
            removed = removed.and(self.store.abort(&upload).await);
        }
        removed
    }
}

/// A copied part as the answer to the copy and as the list of the parts show it.
struct Copied {
    answered: StoredPart,
    listed: StoredPart,
    /// CRC64NVME that the part must have.
    wanted: Crc64,
}

fn checksums(copied: &Copied, findings: &mut Findings) {
    let what = "copy checksums";
    let right = |stored: &StoredPart| stored.crc64 == Some(copied.wanted);
    let details = match (right(&copied.answered), right(&copied.listed)) {
        (true, true) => "returned with the copy and in the list of the parts",
        (true, false) => "returned with the copy",
        (false, true) => "returned in the list of the parts",
        (false, false) => {
            let fix = "--verify compares the whole image; `replicate` always does";
            return findings.warning(what, "the store returns none", fix);
        }
    };
    findings.ok(what, details);
}

/// Returns bytes that do not repeat, so that a range has bytes of its own.
fn noise(len: u64) -> Bytes {
    let mut bytes = Vec::with_capacity(to_usize(len) + size_of::<u64>());
    while to_u64(bytes.len()) < len {
        bytes.extend_from_slice(&rand::random::<u64>().to_le_bytes());
    }
    bytes.truncate(to_usize(len));
    Bytes::from(bytes)
}
