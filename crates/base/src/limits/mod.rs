//! The system's limits on the memory, files and threads of this process.
//!
//! An [`Allowance`] answers three questions: if the work of a [`Demand`] fits ([`Allowance::fit`]), so that a
//! plan is made smaller until it does; how many threads fit if each needs a given amount of memory
//! ([`Allowance::threads`]); and which limit explains a refusal
//! ([`explaining_limit`]), so that an error names it.
//! Memory that the system refuses nevertheless is an [`OutOfMemory`], never a panic.

use std::error::Error;
use std::fmt;
use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::units::{ByteCount, KIB, MIB, to_u64, to_usize};

mod arenas;
mod cgroup;

pub use arenas::bound_arenas;
pub use cgroup::tasks_of_process;

/// Address space of a thread's stack: Rust's default of 2 MiB, and a little for the guard page and
/// thread-local data.
const STACK: u64 = 2 * MIB + 64 * KIB;

/// Share of a control group's memory that a plan may use: three quarters, because sockets, page tables and
/// the page cache count as well.
const GROUP_SHARE: (u64, u64) = (3, 4);

/// One part in this many of the address space is left to the heaps of threads ([`bound_arenas`]).
const HEAPS: u64 = 16;

/// Memory that a command needs before it plans anything: for its runtime's threads, a few files, and its
/// output buffers.
const FLOOR: u64 = 24 * MIB;

/// Files that a command with connections opens besides them: its input, its output twice, and those of the
/// runtime.
const OTHER_FILES: u64 = 24;

/// Smallest number of files that a command needs for its runtime, its signal handlers, its input and its
/// output, besides the files that are open when it begins.
const FEWEST_FILES: u64 = 13;

/// A limit on this process or on its control group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `RLIMIT_AS`: address space of the process.
    AddressSpace(ByteCount),
    /// `RLIMIT_DATA`: private writable memory of the process.
    Data(ByteCount),
    /// Memory of the control group, or of one of its ancestors.
    Memory(ByteCount),
    /// `RLIMIT_FSIZE`: size of a file that the process writes.
    FileSize(ByteCount),
    /// `RLIMIT_NOFILE`: number of open files.
    OpenFiles(u64),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressSpace(max) => {
                write!(f, "the address space of this process is limited to {max} (ulimit -v)")
            }
            Self::Data(max) => write!(f, "the data of this process are limited to {max} (ulimit -d)"),
            Self::Memory(max) => {
                write!(f, "the memory of this process's control group is limited to {max} (memory.max)")
            }
            Self::FileSize(max) => {
                write!(f, "files that this process writes are limited to {max} (ulimit -f)")
            }
            Self::OpenFiles(max) => write!(f, "this process may have {max} files open at once (ulimit -n)"),
        }
    }
}

/// Error of a memory allocation that the system refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("no memory for {purpose} ({bytes}){}", Reason(*limit))]
pub struct OutOfMemory {
    purpose: &'static str,
    bytes: ByteCount,
    limit: Option<Limit>,
}

impl OutOfMemory {
    /// Returns the error for `purpose`, which needs `bytes`. Looks up the limit that explains the refusal.
    #[must_use]
    pub fn of(purpose: &'static str, bytes: u64) -> Self {
        Self { purpose, bytes: ByteCount(bytes), limit: Allowance::of_process().memory_limit() }
    }
}

/// Error of work that doesn't fit into a limit even at its smallest.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{limit}, and {purpose} needs at least {least}")]
pub struct TooTight {
    /// The limit that is too low.
    pub limit: Limit,
    /// Description of the work, for the error message.
    pub purpose: &'static str,
    /// Lowest value of that limit with which the work fits.
    pub least: Least,
}

/// Lowest sufficient value of a limit. `Display` rounds it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Least {
    /// Size of memory or of a file.
    Bytes(ByteCount),
    /// Number of open files.
    Files(u64),
}

impl fmt::Display for Least {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Rounded up, because the user sets the limit to this number and it must be enough.
            Self::Bytes(bytes) if bytes.0 >= MIB => write!(f, "{} MiB", bytes.0.div_ceil(MIB)),
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Files(count) => count.fmt(f),
        }
    }
}

struct Reason(Option<Limit>);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |limit| write!(f, ": {limit}"))
    }
}

/// Most resources that a piece of work needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Memory, without the stacks of threads.
    pub memory: ByteCount,
    pub threads: usize,
    /// Files and connections that are open at the same time.
    pub files: usize,
}

/// The limits on this process (`None` for a limit that isn't set), and its present usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Limit on the address space.
    pub address_space: Option<ByteCount>,
    /// Limit on private writable memory.
    pub data: Option<ByteCount>,
    /// Limit on memory for all processes of the control group together.
    pub memory: Option<ByteCount>,
    /// Limit on the size of a file that the process writes.
    pub file_size: Option<ByteCount>,
    /// Limit on the number of open files.
    pub open_files: Option<u64>,
    /// Address space in use.
    pub mapped: ByteCount,
    /// Private writable memory in use.
    pub private: ByteCount,
}

impl Allowance {
    /// Reads the limits from the system. A limit that can't be read counts as not set.
    #[must_use]
    pub fn of_process() -> Self {
        let bytes = |resource| getrlimit(resource).current.map(ByteCount);
        let (mapped, private) = std::fs::read_to_string("/proc/self/statm")
            .map_or_else(|_| <_>::default(), |text| memory_usage(&text));
        Self {
            address_space: bytes(Resource::As),
            data: bytes(Resource::Data),
            memory: cgroup::memory_of_process(),
            file_size: bytes(Resource::Fsize),
            open_files: getrlimit(Resource::Nofile).current,
            mapped,
            private,
        }
    }

    /// Checks that work fits, with a quarter of the control group's memory to spare.
    ///
    /// # Errors
    /// If the work doesn't fit; the error names the limit.
    pub fn fit(&self, purpose: &'static str, demand: &Demand) -> Result<(), TooTight> {
        self.check(purpose, demand, GROUP_SHARE)
    }

    /// Checks that work fits if it can't be made smaller: it may use all of the control group's memory.
    ///
    /// # Errors
    /// If the work doesn't fit; the error names the limit.
    pub fn fit_without_reserve(&self, purpose: &'static str, demand: &Demand) -> Result<(), TooTight> {
        self.check(purpose, demand, (1, 1))
    }

    fn check(&self, purpose: &'static str, demand: &Demand, group_share: (u64, u64)) -> Result<(), TooTight> {
        let files = OTHER_FILES + to_u64(demand.files);
        if let Some(max) = self.open_files.filter(|max| demand.files > 0 && *max < files) {
            return Err(TooTight { limit: Limit::OpenFiles(max), purpose, least: Least::Files(files) });
        }
        let tight = |limit, least| Err(TooTight { limit, purpose, least: Least::Bytes(ByteCount(least)) });
        if let Some(max) = self.memory
            && demand.memory.0 > share(max, group_share)
        {
            return tight(Limit::Memory(max), demand.memory.0.saturating_mul(group_share.1) / group_share.0);
        }
        let mapped = demand.memory.0.saturating_add(to_u64(demand.threads) * STACK);
        if let Some(max) = self.data
            && mapped > max.0.saturating_sub(self.private.0)
        {
            return tight(Limit::Data(max), self.private.0.saturating_add(mapped));
        }
        match self.address_space {
            Some(max) if mapped > (max.0 - max.0 / HEAPS).saturating_sub(self.mapped.0) => {
                let least = self.mapped.0.saturating_add(mapped);
                tight(Limit::AddressSpace(max), least.saturating_add(least / (HEAPS - 1)))
            }
            _ => Ok(()),
        }
    }

    /// Returns how many of `requested` threads fit, at least one. Each thread needs `each` bytes besides its
    /// stack, and the work needs `base` bytes besides the threads.
    #[must_use]
    pub fn threads(&self, requested: usize, each: u64, base: u64) -> usize {
        let fits = |threads: usize| {
            let memory = ByteCount(base.saturating_add(to_u64(threads).saturating_mul(each)));
            self.fit("", &Demand { memory, threads, files: 0 }).is_ok()
        };
        // Finds the largest count that fits by bisection: if a count fits, so does every smaller one.
        let (mut fit, mut not) = (1, requested + 1);
        while not - fit > 1 {
            let middle = fit.midpoint(not);
            if fits(middle) { fit = middle } else { not = middle }
        }
        fit
    }

    /// Returns how many of `requested` connections may be open at the same time, at least one.
    #[must_use]
    pub fn connections(&self, requested: usize) -> usize {
        let available = self.open_files.map_or(u64::MAX, |max| max.saturating_sub(OTHER_FILES));
        usize::try_from(available).map_or(requested, |available| requested.min(available)).max(1)
    }

    /// Checks that a command can begin at all.
    ///
    /// # Errors
    /// If there is too little memory; the error names the limit.
    pub fn begin(&self) -> Result<(), TooTight> {
        self.fit_without_reserve("any command", &Demand { memory: ByteCount(FLOOR), threads: 0, files: 0 })
    }

    /// Checks that there are enough files for the runtime, which panics if it can't open those for its signal
    /// handlers.
    ///
    /// # Errors
    /// If the limit on open files is too low.
    pub fn runtime(&self) -> Result<(), TooTight> {
        let Some(max) = self.open_files else { return Ok(()) };
        // Files that the process inherited count as well. Reading the folder opens one more file, which isn't
        // counted.
        let open =
            std::fs::read_dir("/proc/self/fd").map_or(max, |open| to_u64(open.count()).saturating_sub(1));
        let least = open.saturating_add(FEWEST_FILES);
        if max < least {
            return Err(TooTight {
                limit: Limit::OpenFiles(max),
                purpose: "this command",
                least: Least::Files(least),
            });
        }
        Ok(())
    }

    /// Checks that a file of `size` bytes may be written.
    ///
    /// # Errors
    /// If the file is larger than the limit on file sizes.
    pub fn file(&self, purpose: &'static str, size: ByteCount) -> Result<(), TooTight> {
        match self.file_size {
            Some(max) if size > max => {
                Err(TooTight { limit: Limit::FileSize(max), purpose, least: Least::Bytes(size) })
            }
            _ => Ok(()),
        }
    }

    /// Returns the limit that explains a refused allocation, if one is set. The control group's limit can't
    /// be the reason: the kernel doesn't refuse memory above it, but kills the process.
    fn memory_limit(&self) -> Option<Limit> {
        let available = |max: ByteCount, used: ByteCount| max.0.saturating_sub(used.0);
        match (self.address_space, self.data) {
            (Some(space), Some(data)) if available(data, self.private) < available(space, self.mapped) => {
                Some(Limit::Data(data))
            }
            (Some(space), _) => Some(Limit::AddressSpace(space)),
            (None, Some(data)) => Some(Limit::Data(data)),
            (None, None) => None,
        }
    }
}

/// Returns the limit that explains an error of the system, if one is set.
#[must_use]
pub fn explaining_limit(error: &io::Error) -> Option<Limit> {
    let allowance = Allowance::of_process();
    match Errno::from_io_error(error)? {
        Errno::MFILE => allowance.open_files.map(Limit::OpenFiles),
        Errno::FBIG => allowance.file_size.map(Limit::FileSize),
        Errno::NOMEM => allowance.memory_limit(),
        _ => None,
    }
}

/// Returns the limit that explains an error or one of its causes, if one is set.
#[must_use]
pub fn explaining_limit_in_chain(error: &(dyn Error + 'static)) -> Option<Limit> {
    causes(error).find_map(|cause| explaining_limit(cause.downcast_ref::<io::Error>()?))
}

/// Returns the error and all of its causes. The error inside an `io::Error` counts as a cause, although
/// `source()` skips it.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error: &&'a (dyn Error + 'static)| {
        let inner: Option<&'a (dyn Error + 'static)> =
            match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(inner) => Some(inner),
                None => None,
            };
        inner.or_else(|| error.source())
    })
}

/// True if an error, or one of its causes, means that the system is short of a resource. Such an error is no
/// statement about the file or object that was being processed.
#[must_use]
pub fn is_shortage(error: &(dyn Error + 'static)) -> bool {
    const SHORTAGES: [Errno; 5] = [Errno::NOMEM, Errno::AGAIN, Errno::NOBUFS, Errno::MFILE, Errno::NFILE];
    causes(error).any(|cause| {
        let errno = cause.downcast_ref::<io::Error>().and_then(Errno::from_io_error);
        cause.is::<OutOfMemory>() || errno.is_some_and(|errno| SHORTAGES.contains(&errno))
    })
}

/// Returns the error's message, followed by the limit that explains the error.
#[must_use]
pub fn message(error: &(dyn Error + 'static)) -> String {
    let limit = error.downcast_ref::<io::Error>().and_then(explaining_limit);
    format!("{error}{}", Reason(limit))
}

/// Returns `count` zeros. The kernel provides each page of memory when it is first written.
///
/// # Errors
/// If the system refuses the memory.
pub fn zeros<T: Clone + Default>(purpose: &'static str, count: u64) -> Result<Vec<T>, OutOfMemory> {
    // Reserves the memory and frees it again, because no stable call both reports a refusal and lets the
    // kernel zero the pages.
    try_with_capacity::<T>(purpose, to_usize(count))?;
    Ok(vec![T::default(); to_usize(count)])
}

/// Returns an empty list with room for `count` items.
///
/// # Errors
/// If the system refuses the memory.
pub fn try_with_capacity<T>(purpose: &'static str, count: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut list = Vec::new();
    list.try_reserve_exact(count)
        .map_err(|_| OutOfMemory::of(purpose, to_u64(count).saturating_mul(to_u64(size_of::<T>()))))?;
    Ok(list)
}

fn share(of: ByteCount, (part, parts): (u64, u64)) -> u64 {
    of.0 / parts * part
}

/// Returns all mapped memory and the private writable memory (stacks included) from the content of
/// `/proc/self/statm`, which counts pages (proc(5)).
fn memory_usage(statm: &str) -> (ByteCount, ByteCount) {
    let page = to_u64(rustix::param::page_size());
    let mut fields = statm.split_whitespace().map(|field| field.parse::<u64>().unwrap_or(0) * page);
    (ByteCount(fields.next().unwrap_or(0)), ByteCount(fields.nth(4).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::GIB;

    fn demand(memory: u64, threads: usize) -> Demand {
        Demand { memory: ByteCount(memory), threads, files: 0 }
    }

    #[test]
    fn each_limit_refuses_what_is_over_it_by_its_name() {
        let none = Allowance::default();
        assert_eq!(
            none.fit("work", &Demand { memory: ByteCount(u64::MAX), threads: 512, files: 9999 }),
            Ok(())
        );
        let space = Allowance { address_space: Some(ByteCount(GIB)), mapped: ByteCount(100 * MIB), ..none };
        assert_eq!(space.fit("work", &demand(800 * MIB, 4)), Ok(()));
        let message =
            space.fit("a conversion", &demand(800 * MIB, 40)).expect_err("stacks count").to_string();
        assert_eq!(
            message,
            "the address space of this process is limited to 1 GiB (ulimit -v), and a conversion needs at least 1048 MiB"
        );
        let group = Allowance { memory: Some(ByteCount(512 * MIB)), ..none };
        assert_eq!(group.fit("work", &demand(384 * MIB, 400)), Ok(()));
        let message = group.fit("work", &demand(385 * MIB, 0)).expect_err("over three quarters").to_string();
        assert!(
            message.contains("limited to 512 MiB (memory.max), and work needs at least 514 MiB"),
            "{message}"
        );
        let data = Allowance { data: Some(ByteCount(GIB)), private: ByteCount(GIB), ..none };
        assert!(data.begin().expect_err("nothing is left").to_string().contains("ulimit -d"));
        let files = Allowance { open_files: Some(30), ..none };
        let message =
            files.fit("work", &Demand { files: 8, ..demand(0, 0) }).expect_err("too many").to_string();
        assert_eq!(
            message,
            "this process may have 30 files open at once (ulimit -n), and work needs at least 32"
        );
        assert_eq!((files.connections(8), files.connections(3), none.connections(8)), (6, 3, 8));
        let file = Allowance { file_size: Some(ByteCount(MIB)), ..none };
        assert_eq!(file.file("the disk", ByteCount(MIB)), Ok(()));
        assert!(
            file.file("the disk", ByteCount(MIB + 1)).expect_err("larger").to_string().contains("ulimit -f")
        );
    }

    #[test]
    fn the_least_that_is_named_is_enough() {
        for memory in [1, 50 * MIB, 777 * MIB + 13] {
            for set in [
                |max: u64| Allowance {
                    address_space: Some(ByteCount(max)),
                    mapped: ByteCount(77 * MIB),
                    ..Allowance::default()
                },
                |max: u64| Allowance {
                    data: Some(ByteCount(max)),
                    private: ByteCount(7 * MIB),
                    ..Allowance::default()
                },
                |max: u64| Allowance { memory: Some(ByteCount(max)), ..Allowance::default() },
            ] {
                let TooTight { least: Least::Bytes(least), .. } =
                    set(0).fit("work", &demand(memory, 3)).expect_err("nothing fits")
                else {
                    panic!("bytes are short")
                };
                assert_eq!(
                    set(least.0.next_multiple_of(MIB)).fit("work", &demand(memory, 3)),
                    Ok(()),
                    "{least}"
                );
            }
        }
    }

    #[test]
    fn as_many_threads_as_fit_and_one_at_least() {
        let tight = |mib: u64| Allowance { memory: Some(ByteCount(mib * MIB)), ..Allowance::default() };
        assert_eq!(Allowance::default().threads(132, 4 * MIB, 32 * MIB), 132);
        assert_eq!(tight(512).threads(132, 4 * MIB, 32 * MIB), (384 - 32) / 4);
        assert_eq!(tight(16).threads(132, 4 * MIB, 32 * MIB), 1);
        assert_eq!(tight(512).threads(1, 4 * MIB, 32 * MIB), 1);
    }

    #[test]
    fn what_is_taken_is_read_from_the_systems_own_account() {
        let page = to_u64(rustix::param::page_size());
        assert_eq!(
            memory_usage("1000 200 100 50 0 300 0\n"),
            (ByteCount(1000 * page), ByteCount(300 * page))
        );
        assert_eq!(memory_usage(""), (ByteCount(0), ByteCount(0)));
        let now = Allowance::of_process();
        assert!(now.mapped > now.private && now.private.0 > 0, "{now:?}");
    }

    #[test]
    fn an_error_that_no_limit_explains_is_left_as_it_is() {
        let error = io::Error::from_raw_os_error(Errno::NOENT.raw_os_error());
        assert_eq!((explaining_limit(&error), message(&error)), (None, error.to_string()));
        let max = Allowance::of_process().open_files.expect("Linux always has one");
        let error = io::Error::from_raw_os_error(Errno::MFILE.raw_os_error());
        assert!(
            message(&error)
                .ends_with(&format!(": this process may have {max} files open at once (ulimit -n)"))
        );
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        assert!(
            zeros::<u8>("a table", 1 << 60).is_err() && try_with_capacity::<u64>("a list", 1 << 58).is_err()
        );
        assert_eq!(zeros("a table", 3), Ok(vec![0_u64; 3]));
    }
}
