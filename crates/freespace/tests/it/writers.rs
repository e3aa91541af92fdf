//! Three writers that keep a filesystem busy: they make, extend, overwrite, cut, rename and remove files and
//! folders, sync some, keep removed ones open, and set attributes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Writers at work, until dropped.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// Starts three writers in folders of `root`, which together keep about `room` bytes of files.
    pub(crate) fn start(root: &Path, room: u64, seed: u64, content: Content) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let threads = (0..3)
            .map(|number| {
                let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
                let folder = root.join(format!("writer{number}"));
                fs::create_dir_all(&folder).expect("a folder");
                let mut writer = Writer {
                    rng: StdRng::seed_from_u64(seed * 10 + number),
                    folder,
                    content,
                    room: room / 3,
                    used: 0,
                    next: 0,
                    files: Vec::new(),
                    folders: Vec::new(),
                    removed: Vec::new(),
                };
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        writer.step();
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        Self { stop, done, threads }
    }

    /// Waits until the writers have done `steps` more.
    pub(crate) fn wait_for(&self, steps: u64) {
        let until = self.done.load(Ordering::Relaxed) + steps;
        while self.done.load(Ordering::Relaxed) < until {
            assert!(self.threads.iter().all(|thread| !thread.is_finished()), "a writer has failed");
            std::thread::yield_now();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.expect("a writer has failed");
            }
        }
    }
}

/// Content of files.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    Random,
    /// One byte again and again, so that the disk compresses well.
    Plain,
}

struct Writer {
    content: Content,
    rng: StdRng,
    folder: PathBuf,
    room: u64,
    used: u64,
    next: u64,
    files: Vec<(PathBuf, u64)>,
    folders: Vec<PathBuf>,
    /// Files that are open and have no name any more.
    removed: Vec<File>,
}

impl Writer {
    fn step(&mut self) {
        let done = match self.rng.random_range(0..100) {
            0..50 => self.make(),
            50..70 => self.remove(),
            70..82 => self.overwrite(),
            82..86 => self.link(),
            86..90 => self.decorate(),
            90..95 => self.keep_removed(),
            _ => self.folder_tree(),
        };
        match done {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                self.removed.clear();
                for _ in 0..20 {
                    self.remove().expect("removing takes no room");
                }
            }
            Err(error) => panic!("{}: {error}", self.folder.display()),
        }
    }

    fn name(&mut self, kind: &str) -> io::Result<PathBuf> {
        self.next += 1;
        let folder = self.folder.join(format!("d{}", self.rng.random_range(0..20)));
        fs::create_dir_all(&folder)?;
        Ok(folder.join(format!("{kind}{}", self.next)))
    }

    fn write(&mut self, file: &mut File, mut length: u64) -> io::Result<()> {
        let mut piece = [0; 16384];
        while length > 0 {
            match self.content {
                Content::Random => self.rng.fill(&mut piece[..]),
                Content::Plain => piece.fill(0x5a),
            }
            let count = length.min(16384);
            file.write_all(&piece[..usize::try_from(count).expect("small")])?;
            length -= count;
        }
        Ok(())
    }

    fn make(&mut self) -> io::Result<()> {
        while self.used > self.room {
            self.remove()?;
        }
        let path = self.name("f")?;
        // From bytes to an eighth of the room, evenly by the power of two.
        let most = u64::BITS - (self.room / 16).leading_zeros();
        let bits = self.rng.random_range(4..most);
        let length = self.rng.random_range(1..2_u64 << bits);
        let mut file = File::create(&path)?;
        self.files.push((path, length));
        self.used += length;
        if self.rng.random_bool(0.1) {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length) {
                // Files without extents have no unwritten ones.
                Err(rustix::io::Errno::OPNOTSUPP) => {}
                other => other?,
            }
        }
        if self.rng.random_bool(0.1) {
            file.seek(SeekFrom::Start(length * 3))?;
        }
        self.write(&mut file, length)?;
        if self.rng.random_bool(0.1) {
            file.set_len(length / 3)?;
        }
        if self.rng.random_bool(0.25) {
            file.sync_all()?;
        }
        Ok(())
    }

    fn remove(&mut self) -> io::Result<()> {
        for _ in 0..[1, 1, 3, 12][self.rng.random_range(0..4)] {
            if self.files.is_empty() {
                return Ok(());
            }
            let (path, length) = self.files.swap_remove(self.rng.random_range(0..self.files.len()));
            fs::remove_file(path)?;
            self.used -= length;
        }
        Ok(())
    }

    /// Returns a regular file that is there.
    fn chosen(&mut self) -> Option<PathBuf> {
        if self.files.is_empty() {
            return None;
        }
        let path = self.files[self.rng.random_range(0..self.files.len())].0.clone();
        path.symlink_metadata().is_ok_and(|metadata| metadata.is_file()).then_some(path)
    }

    fn overwrite(&mut self) -> io::Result<()> {
        let Some(path) = self.chosen() else { return Ok(()) };
        let mut file = OpenOptions::new().write(true).open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(self.rng.random_range(0..=length)))?;
        let more = self.rng.random_range(1..64 << 10);
        self.write(&mut file, more)?;
        if self.rng.random_bool(0.5) {
            file.sync_data()?;
        }
        Ok(())
    }

    fn link(&mut self) -> io::Result<()> {
        let path = self.name("l")?;
        let target = "t".repeat([5, 59, 60, 61, 1000][self.rng.random_range(0..5)]);
        symlink(target, &path)?;
        self.files.push((path, 0));
        if let Some(of) = self.chosen() {
            let path = self.name("h")?;
            fs::hard_link(of, &path)?;
            self.files.push((path, 0));
        }
        Ok(())
    }

    fn decorate(&mut self) -> io::Result<()> {
        let Some(path) = self.chosen() else { return Ok(()) };
        fs::set_permissions(&path, fs::Permissions::from_mode(self.rng.random_range(0o400..0o777)))?;
        let mut value = vec![0; [10, 200, 700][self.rng.random_range(0..3)]];
        self.rng.fill(&mut value[..]);
        let name = format!("user.a{}", self.rng.random_range(0..3));
        match rustix::fs::lsetxattr(&path, name, &value, rustix::fs::XattrFlags::empty()) {
            // The attributes of one file have a block at most.
            Err(rustix::io::Errno::NOSPC) => Ok(()),
            other => Ok(other?),
        }
    }

    fn keep_removed(&mut self) -> io::Result<()> {
        let path = self.name("o")?;
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        fs::remove_file(path)?;
        let length = self.rng.random_range(1..self.room / 100);
        self.write(&mut file, length)?;
        self.removed.push(file);
        if self.removed.len() > 10 {
            self.removed.remove(0);
        }
        Ok(())
    }

    /// Makes a folder with many entries, or removes one: its blocks are then revoked in the journal.
    fn folder_tree(&mut self) -> io::Result<()> {
        let path = self.name("t")?;
        fs::create_dir_all(path.join("a/b"))?;
        self.folders.push(path.clone());
        for index in 0..self.rng.random_range(0..250) {
            File::create(path.join(format!("a/{}{index}", "x".repeat(60))))?;
        }
        if self.folders.len() > 3 {
            fs::remove_dir_all(self.folders.remove(0))?;
        }
        Ok(())
    }
}
