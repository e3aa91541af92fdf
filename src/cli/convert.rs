//! `snapferry convert`.

use std::sync::Arc;

use anyhow::Context as _;

use super::args::ConvertArgs;
use super::config::{self, Place, Use};
use super::exit::{Code, UsageError};
use super::foreign;
use super::log::Verbosity;
use super::print_json;
use super::progress::{Console, Progress};
use super::report::{Report, write_plan};
use super::signals::{self, Left};
use super::verify::write_findings;
use crate::cancel::Cancel;
use crate::clock::{Clock as _, SystemClock};
use crate::convert::counters::Counters;
use crate::convert::plan::{Destination, Plan};
use crate::convert::{Conversion, Converted, Target, plan_for};
use crate::restore::plan::Origin;
use crate::restore::{StoredImage, Verification};
use crate::source::{BadRange, InUse, RawSource, Salvaging, Source};

pub fn run(args: &ConvertArgs, verbosity: Verbosity, console: &Console) -> anyhow::Result<Code> {
    let options = config::options(args)?;
    let host = config::host();
    let place = Place::resolve(&args.destination, &args.device, &host, SystemClock.now())?;
    let source = RawSource::open(&args.device, if args.in_use { InUse::Read } else { InUse::Refuse })?;
    if place.path().is_some_and(|path| source.is_same_as(&path)) {
        return Err(UsageError(format!(
            "the output is the input: {} would be overwritten while it is read",
            args.device.display()
        ))
        .into());
    }
    let plan = plan_for(&source, &options, place.kind())?;
    // Before anybody asks for keys: a plan needs none.
    if args.dry_run {
        return dry_run(args, &plan, source.name(), &place.url());
    }
    let runtime = super::runtime()?;
    let cancel = Cancel::new();
    let left = match place.kind() {
        Destination::Bucket => Left::Upload,
        Destination::File => Left::Target,
    };
    signals::listen(runtime.handle(), &cancel, left)?;
    place.check_beside()?;
    let store = {
        // The HTTP client looks for the runtime that it is made in.
        let _inside = runtime.enter();
        let usage = Use { limit: args.limit, ..Use::plain(plan.connections, &cancel) };
        config::open_store(&place, &args.destination.store, &usage)?
    };
    let target = Target { store, key: place.key().clone(), replace: args.force };
    let counters = Arc::new(Counters::default());
    let progress = Progress::show(console, verbosity, Arc::clone(&counters), source.size());
    let convert = |source: &dyn Source, bad_ranges: &dyn Fn() -> Vec<BadRange>| {
        let counters = Arc::clone(&counters);
        Conversion {
            source,
            target: target.clone(),
            plan: &plan,
            host: host.clone(),
            clock: &SystemClock,
            cancel: cancel.clone(),
            counters,
        }
        .run(runtime.handle(), bad_ranges)
    };
    let converted = if args.salvage {
        let salvaging = Salvaging::new(source);
        convert(&salvaging, &|| salvaging.bad_ranges())
    } else {
        convert(&source, &Vec::new)
    };
    drop(progress);
    let mut converted = converted?;
    let verdict = if args.verify {
        let back = StoredImage::open(Arc::clone(&target.store), target.key.clone(), runtime.handle().clone())
            .with_context(|| format!("the image {} is complete, but can't be read back", converted.url))?;
        let origin = match place.kind() {
            Destination::Bucket => Origin::Bucket,
            Destination::File => Origin::File,
        };
        let verification = Verification::of_new(&back, origin, &converted.manifest, &SystemClock, cancel.clone());
        let verdict = super::verify::shown(verification, console, verbosity)
            .with_context(|| format!("the image {} is complete, but was not verified", converted.url))?;
        Some(verdict)
    } else {
        None
    };
    if let Some(verdict) = &verdict
        && verdict.good
    {
        converted.manifest.note_verified(verdict.sha256.map(|sum| sum.to_string()), SystemClock.now());
        target.put_manifest(&converted.manifest, runtime.handle())?;
    }
    let good = verdict.as_ref().is_none_or(|verdict| verdict.good);
    let report = Report::new(&converted, &counters.totals(), plan.summary());
    print(args, verbosity, &converted, &report)?;
    if let Some(verdict) = verdict.filter(|verdict| !verdict.good) {
        // As above: the exit code tells as well.
        let _ = write_findings(&verdict, &mut foreign::err());
    }
    let complete = converted.manifest.salvaged.is_empty();
    Ok(match (good, complete) {
        (false, _) => Code::Image,
        (true, false) => Code::Source,
        (true, true) => Code::Done,
    })
}

fn print(args: &ConvertArgs, verbosity: Verbosity, converted: &Converted, report: &Report) -> anyhow::Result<()> {
    // The image is there, whether or not somebody still listens on stderr.
    let _ = match verbosity {
        Verbosity::Quiet => report.write_salvaged(&mut foreign::err()),
        Verbosity::Normal | Verbosity::Verbose => report.write_for_people(converted.took, &mut foreign::err()),
    };
    if args.json {
        print_json(report)?;
    }
    Ok(())
}

fn dry_run(args: &ConvertArgs, plan: &Plan, source: &str, image: &str) -> anyhow::Result<Code> {
    let summary = plan.summary();
    if args.json {
        print_json(&summary)?;
    } else {
        write_plan(&summary, source, image, &mut foreign::out())?;
    }
    Ok(Code::Done)
}
