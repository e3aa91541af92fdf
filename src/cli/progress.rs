//! Progress of running work: a bar on a terminal, a log line every ten seconds elsewhere.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Write as _};
use std::str::FromStr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use snapferry_base::threads;
use snapferry_base::units::ByteCount;
use snapferry_engine::convert::counters as convert;
use snapferry_engine::image::counters as restore;
use snapferry_fleet::replicate::Age;

use super::duration::clock_face;
use super::log::Verbosity;
use super::printable::{columns, error_width, fitted};

/// Time between two updates of the bar.
const REDRAW: Duration = Duration::from_millis(250);
/// Time between two log lines without a terminal.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Columns of the bar, where there is room for it and where there is little.
const BAR: usize = 24;
const SHORT_BAR: usize = 10;
/// Width of a terminal that does not report it: that of the VT100, which every other follows.
const UNKNOWN_WIDTH: usize = 80;
/// Time window of the rates: long enough not to flicker, short enough to follow changes.
const WINDOW: Duration = Duration::from_secs(5);

/// The user's choice, by `--progress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProgressChoice {
    /// Bar on a terminal, log lines elsewhere.
    #[default]
    Auto,
    Never,
    /// Log lines at this interval, on a terminal too.
    Every(Duration),
}

impl FromStr for ProgressChoice {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        match typed {
            "auto" => Ok(Self::Auto),
            "never" => Ok(Self::Never),
            other => match other.parse() {
                Ok(Age(every)) if !every.is_zero() => Ok(Self::Every(every)),
                _ => Err(format!("{other:?} is none of auto, never and a time above 0, as in 30s or 1m")),
            },
        }
    }
}

/// Terminal on stderr, shared by log lines and the bar.
#[derive(Clone, Debug)]
pub struct Console {
    bars: MultiProgress,
    terminal: bool,
    progress: ProgressChoice,
}

impl Console {
    pub fn new(progress: ProgressChoice) -> Self {
        // Without a bar or a spinner, a terminal gets what a file gets.
        let terminal = progress == ProgressChoice::Auto && std::io::stderr().is_terminal();
        Self { bars: MultiProgress::new(), terminal, progress }
    }

    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Returns a console for work that runs more than once at a time: with log lines, and without bars.
    pub fn without_terminal(&self) -> Self {
        Self { terminal: false, ..self.clone() }
    }

    /// Shows a spinner while the program waits for something, or nothing without a terminal.
    pub fn spinner(&self) -> Option<ProgressBar> {
        self.terminal.then(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = self.bars.add(ProgressBar::new_spinner().with_style(style));
            // The bar starts a thread for this, and panics if the system refuses it one. Without a thread the
            // spinner only turns with each message.
            if threads::available_threads("show", 1).1.is_none() {
                bar.enable_steady_tick(REDRAW);
            }
            bar
        })
    }

    /// Prints lines above the bar.
    ///
    /// # Errors
    /// If stderr can't be written to; the work goes on without it. (The bars' own `suspend` panics in that
    /// case.)
    pub fn print(&self, lines: &[u8]) -> std::io::Result<()> {
        if self.bars.is_hidden() {
            std::io::stderr().write_all(lines)
        } else {
            self.bars.println(String::from_utf8_lossy(lines))
        }
    }
}

/// Counters of running work at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Bytes of the disk that are done.
    pub done: u64,
    /// Bytes of the image made or fetched.
    pub image: u64,
    /// Bytes of the image that the destination has confirmed.
    pub sent: u64,
    /// Bytes of the disk that did not change since an older image.
    pub unchanged: u64,
    /// Number of times that each of [`Watchable::STAGES`] held the others up.
    pub waits: [u64; 3],
}

/// Work that reports its progress.
pub trait Watchable: Send + Sync + 'static {
    /// Message in the log, such as `converting`.
    const DOES: &'static str;
    /// Verbs for the rates of the disk and of the image, such as `read` and `write`.
    const VERBS: [&'static str; 2];
    /// Stages that may hold the others up.
    const STAGES: [&'static str; 3];

    /// Returns the current values of the counters.
    fn sample(&self) -> Sample;
}

impl Watchable for convert::Counters {
    const DOES: &'static str = "converting";
    const VERBS: [&'static str; 2] = ["read", "write"];
    const STAGES: [&'static str; 3] = [
        convert::Bottleneck::Read.name(),
        convert::Bottleneck::Compress.name(),
        convert::Bottleneck::Upload.name(),
    ];

    fn sample(&self) -> Sample {
        let convert::Totals { done, stored, sent, copied, unchanged, waits, .. } = self.totals();
        Sample { done, image: stored, sent: sent + copied, unchanged, waits }
    }
}

impl Watchable for restore::Counters {
    const DOES: &'static str = "reading the image";
    const VERBS: [&'static str; 2] = ["decode", "fetch"];
    const STAGES: [&'static str; 3] = [
        restore::Bottleneck::Fetch.name(),
        restore::Bottleneck::Decode.name(),
        restore::Bottleneck::Sink.name(),
    ];

    fn sample(&self) -> Sample {
        let restore::Totals { done, fetched, waits } = self.totals();
        Sample { done, image: fetched, sent: fetched, unchanged: 0, waits }
    }
}

/// Display of running work, until it is dropped.
pub struct Progress {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Starts showing `counters`, which go up to `size` bytes.
    pub fn show<W: Watchable>(
        console: &Console,
        verbosity: Verbosity,
        counters: Arc<W>,
        size: ByteCount,
    ) -> Self {
        if verbosity == Verbosity::Quiet || console.progress == ProgressChoice::Never {
            return Self { stop: None, thread: None };
        }
        let log_every = match console.progress {
            ProgressChoice::Every(interval) => interval,
            ProgressChoice::Auto | ProgressChoice::Never => LOG_EVERY,
        };
        let (stop, stopped) = bounded(0);
        let (bars, terminal) = (console.bars.clone(), console.terminal);
        let showing = move || {
            let mut view = View::new(size);
            let bar = terminal.then(|| bars.add(bar(size)));
            let every = if terminal { REDRAW } else { log_every };
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                let moment = view.look::<W>(counters.sample(), Instant::now());
                match &bar {
                    Some(bar) => {
                        let line = moment.for_bar(W::VERBS, error_width().unwrap_or(UNKNOWN_WIDTH));
                        bar.set_style(style(line.bar));
                        bar.set_position(moment.sample.done);
                        bar.set_message(line.text);
                    }
                    None => moment.log(W::DOES),
                }
            }
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
        };
        // The work goes on without a display.
        let thread = threads::spawn("show", showing)
            .inspect_err(|refused| tracing::debug!("no progress is shown: {refused}"));
        Self { stop: Some(stop), thread: thread.ok() }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A bar that panicked is no reason to fail the work.
            let _ = thread.join();
        }
    }
}

fn bar(size: ByteCount) -> ProgressBar {
    ProgressBar::new(size.0).with_style(style(0))
}

/// Returns the style of a line whose bar has `width` columns.
fn style(width: usize) -> ProgressStyle {
    let template = match width {
        0 => "{msg}".to_owned(),
        width => format!("{{bar:{width}.cyan/blue}} {{msg}}"),
    };
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("█▉▊▋▌▍▎▏ ")
}

/// Line of the display, which fits the terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BarLine {
    /// Columns of the bar, or 0 without one.
    bar: usize,
    text: String,
}

impl BarLine {
    fn columns(&self) -> usize {
        // A blank stands between the bar and the text.
        columns(&self.text) + if self.bar > 0 { self.bar + 1 } else { 0 }
    }
}

/// Samples of the counters over a moving window.
struct View {
    size: ByteCount,
    seen: VecDeque<(Instant, Sample)>,
}

/// Progress at one moment.
struct Moment {
    sample: Sample,
    size: ByteCount,
    /// Bytes of the disk per second.
    disk_rate: u64,
    /// Bytes of the image per second.
    image_rate: u64,
    left: Option<Duration>,
    bottleneck: Option<&'static str>,
}

impl View {
    fn new(size: ByteCount) -> Self {
        Self { size, seen: VecDeque::from([(Instant::now(), Sample::default())]) }
    }

    fn look<W: Watchable>(&mut self, sample: Sample, now: Instant) -> Moment {
        self.seen.push_back((now, sample));
        // One sample from before the window stays, as the start of the rates.
        while self.seen.len() > 2 && now.duration_since(self.seen[1].0) > WINDOW {
            self.seen.pop_front();
        }
        let (then, before) = self.seen[0];
        let elapsed = now.duration_since(then);
        let rate = |now: u64, before: u64| per_second(now.saturating_sub(before), elapsed);
        let disk_rate = rate(sample.done, before.done);
        let left =
            (disk_rate > 0).then(|| Duration::from_secs(self.size.0.saturating_sub(sample.done) / disk_rate));
        let waits = |stage: usize| sample.waits[stage].saturating_sub(before.waits[stage]);
        let bottleneck = (0..3)
            .max_by_key(|&stage| waits(stage))
            .filter(|&stage| waits(stage) > 0)
            .map(|stage| W::STAGES[stage]);
        Moment {
            sample,
            size: self.size,
            disk_rate,
            image_rate: rate(sample.image, before.image),
            left,
            bottleneck,
        }
    }
}

/// Returns whole bytes per second.
pub fn per_second(bytes: u64, elapsed: Duration) -> u64 {
    let millis = elapsed.as_millis().max(1);
    u64::try_from(u128::from(bytes) * 1000 / millis).unwrap_or(u64::MAX)
}

impl Moment {
    /// Returns image bytes per disk byte so far, such as `0.3400`.
    fn ratio(&self) -> String {
        ratio(self.sample.image, self.sample.done)
    }

    /// Returns the line for a terminal of `width` columns. What does not fit is dropped, the least important
    /// part first.
    fn for_bar(&self, [disk, image]: [&str; 2], width: usize) -> BarLine {
        let left = self.left.map_or_else(|| "--:--".to_owned(), clock_face);
        // Each part with its rank; the bar has the third. In the order of the line.
        let mut parts = vec![
            (1, format!("{:>3}%", self.percent())),
            (4, format!("{} of {}", ByteCount(self.sample.done), self.size)),
            (5, format!("{disk} {}/s", ByteCount(self.disk_rate))),
            (7, format!("{image} {}/s", ByteCount(self.image_rate))),
            (8, format!("ratio {}", self.ratio())),
            (2, format!("ETA {left}")),
        ];
        if self.sample.unchanged > 0 {
            parts.push((5, format!("{}% unchanged", share(self.sample.unchanged, self.sample.done))));
        }
        // At the start no stage has waited yet; later all stages may keep up for a moment.
        parts.extend(self.bottleneck.map(|stage| (6, format!("{stage}-bound"))));
        let line = |last: usize| {
            let kept = parts.iter().filter(|(rank, _)| *rank <= last).map(|(_, text)| text.as_str());
            let bar = match last {
                0..=2 => 0,
                3 => SHORT_BAR,
                _ => BAR,
            };
            BarLine { bar, text: kept.collect::<Vec<&str>>().join("  ") }
        };
        let fits = |line: &BarLine| line.columns() <= width;
        let shortest =
            || BarLine { bar: 0, text: fitted(&format!("{}%", self.percent()), width).into_owned() };
        (1..=8).rev().map(line).find(fits).unwrap_or_else(shortest)
    }

    fn percent(&self) -> u128 {
        share(self.sample.done, self.size.0)
    }

    fn log(&self, verb: &str) {
        let left = self.left.map_or_else(|| "unknown".to_owned(), clock_face);
        tracing::info!(
            percent = self.percent(),
            done = %ByteCount(self.sample.done),
            read_rate = %format_args!("{}/s", ByteCount(self.disk_rate)),
            write_rate = %format_args!("{}/s", ByteCount(self.image_rate)),
            sent = %ByteCount(self.sample.sent),
            ratio = %self.ratio(),
            left = %left,
            bottleneck = self.bottleneck.unwrap_or("none"),
            "{verb}"
        );
    }
}

/// Returns `part` in percent of `whole`, rounded down.
fn share(part: u64, whole: u64) -> u128 {
    u128::from(part) * 100 / u128::from(whole.max(1))
}

/// Formats `small` divided by `large`, to four digits.
pub fn ratio(small: u64, large: u64) -> String {
    if large == 0 {
        return "-".to_owned();
    }
    let ten_thousandths = u128::from(small) * 10_000 / u128::from(large);
    format!("{}.{:04}", ten_thousandths / 10_000, ten_thousandths % 10_000)
}

#[cfg(test)]
mod tests {
    use snapferry_base::units::{GIB, MIB, to_u64};

    use super::*;

    #[test]
    fn rates_follow_the_window_and_the_rest_is_estimated() {
        let mut view = View::new(ByteCount(10 * GIB));
        let start = view.seen[0].0;
        let at = |seconds: u64, done: u64| {
            (Sample { done, image: done / 4, ..Sample::default() }, start + Duration::from_secs(seconds))
        };
        for second in 1..=20 {
            let (sample, now) = at(second, second * 100 * MIB);
            view.look::<convert::Counters>(sample, now);
        }
        let (sample, now) = at(21, 2100 * MIB);
        let moment = view.look::<convert::Counters>(sample, now);
        assert_eq!((moment.disk_rate, moment.image_rate), (100 * MIB, 25 * MIB));
        assert_eq!(moment.left, Some(Duration::from_secs((10 * 1024 - 2100) / 100)));
        assert_eq!(moment.ratio(), "0.2500");
        let text = |width| moment.for_bar(["read", "write"], width).text;
        assert_eq!(
            text(200),
            " 20%  2.05 GiB of 10 GiB  read 100 MiB/s  write 25 MiB/s  ratio 0.2500  ETA 01:21"
        );
        assert_eq!(text(100), " 20%  2.05 GiB of 10 GiB  read 100 MiB/s  write 25 MiB/s  ETA 01:21");
        assert_eq!(text(60), " 20%  2.05 GiB of 10 GiB  ETA 01:21");
        assert_eq!(
            moment.for_bar(["read", "write"], 40),
            BarLine { bar: 10, text: " 20%  ETA 01:21".into() }
        );
        assert_eq!([20, 10, 3, 2].map(text), [" 20%  ETA 01:21", " 20%", "20%", "2…"]);
        let unchanged = Moment { sample: Sample { unchanged: 1890 * MIB, ..moment.sample }, ..moment };
        let bar = unchanged.for_bar(["read", "write"], 95).text;
        assert_eq!(bar, " 20%  2.05 GiB of 10 GiB  read 100 MiB/s  ETA 01:21  90% unchanged");
        let moment = unchanged;
        for width in 1..=200 {
            let line = moment.for_bar(["read", "write"], width);
            assert!(line.columns() <= width, "{width}: {line:?}");
        }
        assert!(to_u64(view.seen.len()) <= 8);
    }

    #[test]
    fn the_choice_of_progress_is_read() {
        let read = |typed: &str| typed.parse::<ProgressChoice>().ok();
        assert_eq!(read("auto"), Some(ProgressChoice::Auto));
        assert_eq!(read("never"), Some(ProgressChoice::Never));
        assert_eq!(read("1m"), Some(ProgressChoice::Every(Duration::from_secs(60))));
        assert_eq!([read("0s"), read("10"), read("")], [None; 3]);
    }

    #[test]
    fn numbers_print_as_people_read_them() {
        assert_eq!(
            (ratio(1, 3).as_str(), ratio(0, 0).as_str(), ratio(5, 4).as_str()),
            ("0.3333", "-", "1.2500")
        );
        assert_eq!(per_second(1000, Duration::from_millis(500)), 2000);
    }
}
