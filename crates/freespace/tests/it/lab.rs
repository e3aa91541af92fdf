//! A folder on a filesystem with reflinks: a copy of a disk image there is one instant of it, even while a
//! program writes to it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FallocateFlags, fallocate, ioctl_ficlone};
use snapferry_freespace::{Disk, RangeSet};

/// Reports on stderr, and in the file that `make test` prints, that a test does not run here.
pub(crate) fn skip(reason: &str) {
    let line = format!("SKIPPED: {reason} ({})\n", std::thread::current().name().unwrap_or("unnamed"));
    let _ = io::stderr().lock().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("SNAPFERRY_SKIPPED") {
        let _ = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Runs a tool to its end; returns its exit code and what it printed.
pub(crate) fn run(program: &str, args: &[&str]) -> (i32, String) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program)
        .args(args)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout) + &text(&output.stderr))
}

/// Runs a tool that must succeed; returns what it printed.
pub(crate) fn must(program: &str, args: &[&str]) -> String {
    let (code, text) = run(program, args);
    assert_eq!(code, 0, "{program} {args:?}: {text}");
    text
}

/// True if every tool can be run, by root.
fn has(tools: &[&str]) -> bool {
    if !rustix::process::geteuid().is_root() {
        skip("needs root");
        return false;
    }
    has_tools(tools)
}

/// True if every tool can be run. A missing tool fails the test in CI.
pub(crate) fn has_tools(tools: &[&str]) -> bool {
    let found = |tool: &&&str| {
        ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().any(|folder| Path::new(folder).join(tool).exists())
    };
    if let Some(missing) = tools.iter().find(|tool| !found(tool)) {
        let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        assert!(!in_ci, "{missing} is missing, and CI must have it: scripts/install-system.sh --test");
        skip(&format!("{missing} is not installed"));
        return false;
    }
    true
}

/// Mounted filesystem, unmounted on drop.
pub(crate) struct Mount(PathBuf);

impl Mount {
    pub(crate) fn new(image: &Path, at: &Path, options: &str) -> Result<Self, String> {
        fs::create_dir_all(at).expect("a mount point");
        let options = if options.is_empty() { "loop".to_owned() } else { format!("loop,{options}") };
        match run("mount", &["-o", &options, text(image), text(at)]) {
            (0, _) => Ok(Self(at.to_owned())),
            (code, said) => Err(format!("mount ended with {code}: {said}")),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if run("umount", &[text(&self.0)]).0 != 0 {
            let _ = run("umount", &["--lazy", text(&self.0)]);
        }
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the test's own")
}

/// Folder that holds disk images and copies of them.
pub(crate) struct Lab {
    // Fields in the order in which they must be dropped.
    _mount: Option<Mount>,
    folder: PathBuf,
    _scratch: tempfile::TempDir,
    next: AtomicU32,
}

impl Lab {
    /// Makes a lab of up to `size` bytes of changes. `None`, and a line on stderr, if this machine can't.
    pub(crate) fn new(size: u64, tools: &[&str]) -> Option<Self> {
        let mut all = vec!["mount", "losetup"];
        all.extend_from_slice(tools);
        if !has(&all) {
            return None;
        }
        let scratch = tempfile::tempdir().expect("a folder");
        let mut lab = Self {
            _mount: None,
            folder: scratch.path().to_owned(),
            _scratch: scratch,
            next: AtomicU32::new(0),
        };
        let probe = lab.file("probe", 4096);
        if !clone(&probe, &lab.folder.join("probe.copy")) {
            if !has(&["mkfs.xfs"]) {
                return None;
            }
            let image = lab.file("lab.xfs", size.max(512 << 20));
            must("mkfs.xfs", &["-q", "-m", "reflink=1", text(&image)]);
            let at = lab.folder.join("lab");
            match Mount::new(&image, &at, "") {
                Ok(mount) => lab._mount = Some(mount),
                Err(reason) => {
                    skip(&reason);
                    return None;
                }
            }
            lab.folder = at;
        }
        Some(lab)
    }

    /// Makes a sparse file.
    pub(crate) fn file(&self, name: &str, length: u64) -> PathBuf {
        let path = self.folder.join(name);
        File::create(&path).and_then(|file| file.set_len(length)).expect("a sparse file");
        path
    }

    /// Returns a path that nothing has yet.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.{}", self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// Copies an image as it is at one instant.
    pub(crate) fn copy(&self, of: &Path, name: &str) -> Image {
        let path = self.path(name);
        assert!(clone(of, &path), "this filesystem has reflinks");
        Image(path)
    }
}

fn clone(of: &Path, to: &Path) -> bool {
    let (Ok(from), Ok(to)) = (File::open(of), File::create(to)) else { return false };
    ioctl_ficlone(&to, &from).is_ok()
}

/// Image file, removed on drop.
pub(crate) struct Image(pub(crate) PathBuf);

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Image {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Puts zeros in place of `free`.
    pub(crate) fn mask(&self, free: &RangeSet) {
        let file = OpenOptions::new().write(true).open(&self.0).expect("an image");
        for range in free.as_slice() {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, flags, range.start, range.end - range.start).expect("a hole");
        }
    }
}

/// Disk in a file.
pub(crate) struct FileDisk(File, u64);

impl FileDisk {
    pub(crate) fn open(path: &Path) -> Self {
        let file = File::open(path).expect("an image");
        let size = file.metadata().expect("its size").len();
        Self(file, size)
    }
}

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.1
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, into, offset)
    }
}
