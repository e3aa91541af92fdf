//! A socket in place of systemd's journal, for a program in a mount namespace of its own.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use snapferry_testkit::skip::{has_oracle, is_root};
use tempfile::TempDir;

use super::folder;

/// Datagram that ends the journal. It is no record.
const END: &[u8] = b"the end";
/// Largest datagram. Larger records come in a file, which no record of these tests needs.
const LARGEST: usize = 1 << 20;
/// Makes the folder the journal's own, in this mount namespace alone, and becomes the program.
const SCRIPT: &str = "mount -t tmpfs run /run && mkdir -p /run/systemd/journal && \
                      mount --bind \"$0\" /run/systemd/journal && exec \"$@\"";

/// Fields of one record, in their order: a name may occur more than once.
#[derive(Clone, Debug)]
pub struct JournalRecord(pub Vec<(String, String)>);

impl JournalRecord {
    /// Decodes a datagram of the journal's native protocol
    /// (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): `NAME=value`, or the name alone with the length of the
    /// value in 64 bits, little-endian, and the value; each with a line end.
    fn decode(mut bytes: &[u8]) -> Self {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let end = bytes.iter().position(|&byte| byte == b'\n').expect("a line end");
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            let (name, value) = match line.iter().position(|&byte| byte == b'=') {
                Some(at) => {
                    bytes = rest;
                    (&line[..at], &line[at + 1..])
                }
                None => {
                    let (length, rest) = rest.split_first_chunk::<8>().expect("a length");
                    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
                    assert_eq!(rest[length], b'\n', "a value ends with a line end");
                    bytes = &rest[length + 1..];
                    (line, &rest[..length])
                }
            };
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
            fields.push((text(name), text(value)));
        }
        Self(fields)
    }

    /// All different values of a field. The journal keeps each of them.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let mut values: Vec<&str> =
            self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect();
        values.dedup();
        values
    }

    /// The value of a field that has one value at most, as `journalctl NAME=value` finds it.
    #[track_caller]
    pub fn value(&self, name: &str) -> Option<&str> {
        let values = self.values(name);
        assert!(values.len() <= 1, "{name} has several values: {self:?}");
        values.first().copied()
    }
}

/// Journal that keeps all records in memory.
pub struct TestJournal {
    folder: TempDir,
    reader: JoinHandle<Vec<JournalRecord>>,
}

impl TestJournal {
    /// Binds the socket. None, with a report, if this machine has no mount namespaces for it.
    pub fn start() -> Option<Self> {
        if !is_root() || !has_oracle("unshare") {
            return None;
        }
        let folder = folder();
        let socket = UnixDatagram::bind(folder.path().join("socket")).unwrap();
        let reader = std::thread::spawn(move || {
            let (mut records, mut buffer) = (Vec::new(), vec![0; LARGEST]);
            loop {
                let length = socket.recv(&mut buffer).unwrap();
                match &buffer[..length] {
                    END => return records,
                    // The program tries with an empty datagram if there is a journal.
                    [] => {}
                    datagram => records.push(JournalRecord::decode(datagram)),
                }
            }
        });
        Some(Self { folder, reader })
    }

    /// Returns the same command in a mount namespace in which this is the journal.
    pub fn around(&self, command: &Command) -> Command {
        let mut wrapped = Command::new("unshare");
        wrapped.args(["--mount", "sh", "-c", SCRIPT]).arg(self.folder.path());
        wrapped.arg(command.get_program()).args(command.get_args()).env_clear().stdin(Stdio::null());
        wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        wrapped
    }

    /// Stops reading, and returns the records so far. The folder stays until it is dropped.
    pub fn end(self) -> (Vec<JournalRecord>, TempDir) {
        UnixDatagram::unbound().unwrap().send_to(END, self.folder.path().join("socket")).unwrap();
        (self.reader.join().unwrap(), self.folder)
    }
}

#[test]
fn both_forms_of_a_field_are_read() {
    let mut datagram = b"PRIORITY=6\nMESSAGE\n".to_vec();
    datagram.extend_from_slice(&5u64.to_le_bytes());
    datagram.extend_from_slice(b"a\n=b!\nJOB=x=y\n");
    let record = JournalRecord::decode(&datagram);
    let found = [record.value("PRIORITY"), record.value("MESSAGE"), record.value("JOB"), record.value("ID")];
    assert_eq!(found, [Some("6"), Some("a\n=b!"), Some("x=y"), None]);
}
