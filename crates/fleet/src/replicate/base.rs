//! Choice of the earlier image that a job's image takes unchanged parts from, inside the store.
//!
//! It is chosen once, among the newest images of the same server, and recorded before it is used: a process
//! that takes the job over uses the same version of the same image, or none.

use std::collections::BTreeSet;
use std::sync::Arc;

use snapferry_base::retry::{Class, chain};
use snapferry_base::units::{ByteCount, to_u64};
use snapferry_engine::convert::plan::Plan;
use snapferry_engine::convert::{Converted, WhyFull};
use snapferry_engine::image::base::{Base, BaseRequirements, NotUsable, RequiredProof};
use snapferry_engine::manifest::{Manifest, RefusedRecord};
use snapferry_engine::store::{ListedObject, ObjectKey, StoreError};

use super::error::Fault;
use super::job::BaseRule;
use super::names;
use super::saga::Run;
use super::state::{BaseState, BaseUse};

/// Number of images that are tried, the newest first.
pub(super) const TRIED: usize = 3;

/// Reason why a job's image is made without an earlier one.
pub(super) struct NoBase {
    /// The reason in one word, for programs.
    pub word: &'static str,
    /// The reason for people.
    pub reason: String,
}

impl NoBase {
    fn new(word: &'static str, reason: impl Into<String>) -> Self {
        Self { word, reason: reason.into() }
    }
}

/// Earlier image that was chosen, or the reason why there is none.
pub(super) struct Chosen {
    pub base: Result<Arc<Base>, NoBase>,
    /// Refusal of the store that an earlier manifest records, so that the next manifest keeps it.
    pub refused: Option<RefusedRecord>,
}

impl Chosen {
    fn none(why: NoBase) -> Self {
        Self { base: Err(why), refused: None }
    }
}

/// True if the job may use an earlier image.
pub(super) fn is_wanted(run: &Run<'_>) -> bool {
    run.job.base == BaseRule::Auto && !run.state.full
}

/// Finds and checks the earlier image for a conversion with this plan, and notes it in the job's state. The
/// caller records the state before it uses the image.
///
/// # Errors
/// If the job was stopped, or another process has it. That no image can be used is no error.
pub(super) async fn choose(run: &mut Run<'_>, plan: &Plan) -> Result<Chosen, Fault> {
    if run.job.base == BaseRule::None {
        return Ok(Chosen::none(NoBase::new("not-asked", "--base none")));
    }
    if run.state.full {
        let of = run.state.base.as_ref().map(|base| format!(", with parts of {}", base.key));
        let reason = format!("an image of this job was wrong{}", of.unwrap_or_default());
        return Ok(Chosen::none(NoBase::new("disproved", reason)));
    }
    let keys = match &run.state.base {
        Some(chosen) => vec![chosen.key.clone()],
        None => match candidates(run).await {
            Ok(keys) => keys,
            Err(error) if ends_the_job(&error) => return Err(error.into()),
            Err(error) => {
                let reason = format!("earlier images can't be looked for: {}", chain(&error));
                return Ok(Chosen::none(NoBase::new("unreadable", reason)));
            }
        },
    };
    let requirements = BaseRequirements {
        encoder: plan.encoder_record(),
        proof: RequiredProof::Verified,
        now: run.context.clock.now(),
    };
    let mut first = None;
    for key in keys {
        match Base::load(&*run.context.store, &key, &requirements).await {
            Ok(base) => return Ok(note(run, base)),
            Err(NotUsable::Store(error)) if ends_the_job(&error) => return Err(error.into()),
            Err(why) => {
                tracing::debug!(%key, "no base: {}", chain(&why));
                let is_refusal = matches!(why, NotUsable::Refused { .. });
                // The newest image decides what is reported.
                first.get_or_insert((key, why));
                if is_refusal {
                    // The store refused, not the image: it would refuse copies from an older one, too.
                    break;
                }
            }
        }
    }
    let Some((key, why)) = first else {
        return Ok(Chosen::none(NoBase::new("none", "there is no earlier image of this server")));
    };
    let no_base = NoBase::new(why.word(), format!("{key}: {}", chain(&why)));
    let refused = match why {
        NotUsable::Refused { what, at } => Some(RefusedRecord { what, at }),
        _ => None,
    };
    Ok(Chosen { base: Err(no_base), refused })
}

/// Notes the image that was found, unless the job chose another version before.
fn note(run: &mut Run<'_>, base: Base) -> Chosen {
    let source = base.copy_source();
    let found = BaseState { key: source.key.clone(), etag: source.etag.clone() };
    if run.state.base.as_ref().is_some_and(|chosen| *chosen != found) {
        let reason = format!("{}: it was replaced after this job chose it", found.key);
        return Chosen::none(NoBase::new("replaced", reason));
    }
    run.state.base = Some(found);
    Chosen { base: Ok(Arc::new(base)), refused: None }
}

/// True if the error means that the job ends here: it was stopped, or another process has it.
fn ends_the_job(error: &StoreError) -> bool {
    matches!(error.class(), Class::Cancelled | Class::LeaseLost)
}

/// Returns the keys of the images that are tried.
async fn candidates(run: &Run<'_>) -> Result<Vec<ObjectKey>, StoreError> {
    let (prefix, server) = (&run.job.prefix, &run.job.server);
    let listed = run.context.store.list(&names::folder(prefix, server)).await?;
    Ok(newest_runs(&listed, prefix, server, &run.names.key))
}

/// Returns the complete images of a server's runs in a list, the newest first, at most [`TRIED`] of them and
/// without `own`.
fn newest_runs(listed: &[ListedObject], prefix: &str, server: &str, own: &ObjectKey) -> Vec<ObjectKey> {
    let keys: BTreeSet<&ObjectKey> = listed.iter().map(|object| &object.key).collect();
    let mut runs: Vec<_> = listed
        .iter()
        .filter(|object| object.key != *own && keys.contains(&object.key.manifest()))
        .filter_map(|object| {
            let run = names::run_of_key(prefix, server, &object.key)?;
            Some((names::time_of_run(run)?, &object.key))
        })
        .collect();
    runs.sort_unstable_by(|one, other| other.cmp(one));
    runs.into_iter().take(TRIED).map(|(_, key)| key.clone()).collect()
}

/// What a job's image was made of, for its result.
#[derive(Default)]
pub(super) struct Origins {
    pub bytes_sent: Option<ByteCount>,
    pub base: Option<BaseUse>,
    pub full_because: Option<String>,
}

impl Origins {
    /// Of a conversion by this process. `no_base` is the reason why it began without an earlier image.
    pub fn of_conversion(converted: &Converted, no_base: Option<&NoBase>) -> Self {
        let base = converted.reused.as_ref().map(|reused| BaseUse {
            key: reused.key.clone(),
            segments: reused.segments,
            segments_unchanged: reused.unchanged,
            bytes_copied: ByteCount(reused.copied),
            bytes_fetched: Some(ByteCount(reused.fetched)),
            copies: Some(reused.copies),
            segments_read_back: Some(reused.read_back),
        });
        let given_up = converted.given_up.as_deref().map(WhyFull::word);
        let full_because = given_up.or(no_base.map(|why| why.word)).map(str::to_owned);
        Self { bytes_sent: Some(ByteCount(converted.sent)), base, full_because }
    }

    /// Of an image that another process has sent, as far as its manifest shows.
    pub fn of_manifest(manifest: &Manifest) -> Self {
        let base = manifest.base.as_ref().map(|base| BaseUse {
            key: base.key.clone(),
            segments: to_u64(manifest.segments.len()),
            segments_unchanged: base.segments,
            bytes_copied: base.bytes,
            bytes_fetched: None,
            copies: None,
            segments_read_back: None,
        });
        Self { bytes_sent: None, base, full_because: None }
    }

    /// Returns what was unchanged, copied and sent, or why all of the disk was sent, as text for the user.
    /// Empty if nothing of that is known, or if nothing else was wanted.
    pub fn description(&self, no_base: Option<&NoBase>) -> String {
        match (&self.base, no_base) {
            (Some(base), _) => {
                let BaseUse { segments, segments_unchanged, bytes_copied, .. } = base;
                let sent = self.bytes_sent.map(|sent| format!(", {sent} sent")).unwrap_or_default();
                format!(
                    "; {segments_unchanged} of {segments} segments unchanged; {bytes_copied} copied in the store{sent}"
                )
            }
            (None, Some(why)) if why.word != "not-asked" => {
                format!("; all of it sent, without a base: {}", why.reason)
            }
            (None, _) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(keys: &[&str]) -> Vec<ListedObject> {
        keys.iter()
            .map(|key| ListedObject { key: ObjectKey::new(key).expect("a key"), size: 1, modified: None })
            .collect()
    }

    #[test]
    fn the_newest_complete_runs_of_the_server_are_tried() {
        let names: Vec<String> = (1..=5)
            .map(|day| {
                let job = super::super::testing::job("web01", day * 86_400);
                job.names().expect("names").key.as_str().to_owned()
            })
            .collect();
        let mut keys: Vec<String> = names.clone();
        keys.extend([0, 1, 2, 4].map(|run| format!("{}.manifest", names[run])));
        keys.extend(["web01/other.qcow2".to_owned(), "web01/other.qcow2.manifest".to_owned()]);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let own = ObjectKey::new(&names[4]).expect("a key");
        let tried: Vec<String> = newest_runs(&listed(&keys), "", "web01", &own)
            .iter()
            .map(|key| key.as_str().to_owned())
            .collect();
        // The fourth has no manifest, and the fifth is the job's own.
        assert_eq!(tried, [names[2].clone(), names[1].clone(), names[0].clone()]);
        let none = ObjectKey::new("none").expect("a key");
        assert_eq!(newest_runs(&listed(&keys), "", "web01", &none).len(), TRIED);
        assert_eq!(newest_runs(&listed(&keys), "", "web01", &none)[0].as_str(), names[4]);
        assert!(newest_runs(&listed(&keys), "nightly/", "web01", &none).is_empty());
    }
}
