//! What the suites share.

mod bench;
mod bucket;
mod command;
mod conversion;
mod http_proxy;
mod journal;
mod proxy;
mod redis;
mod region;
mod sim;
mod strict_json;
mod terminal;
mod wait;
mod words;

pub use self::bench::{Bench, Host};
pub use self::bucket::{BUCKET, Bucket, KEY, key, runtime};
pub use self::command::{Ended, Running, convert_into_file, folder, left_in, program, run, snapferry};
pub use self::conversion::{Made, convert, convert_disk, convert_file, padded};
pub use self::http_proxy::{HttpProxy, Manners};
pub use self::journal::{JournalRecord, TestJournal};
pub use self::proxy::{Cut, Proxy};
pub use self::redis::{Redis, SAFE, job};
pub use self::region::{AWAY, HOME, POLICY, SERVER, client_context, client_of, tokens};
pub use self::sim::snapferry_sim;
pub use self::strict_json::{strict_json, strict_log};
pub use self::terminal::{CTRL_C, CTRL_D, Terminal, assert_fits, drawn};
pub use self::wait::wait_until;
pub use self::words::{Described, all_commands};
