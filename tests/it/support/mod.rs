//! What the suites share.

mod bench;
mod bucket;
mod command;
mod conversion;
mod http_proxy;
mod proxy;
mod redis;
mod region;
mod sim;
mod wait;

pub use self::bench::{Bench, Host};
pub use self::bucket::{BUCKET, Bucket, KEY, key, runtime};
pub use self::command::{Ended, Running, convert_into_file, folder, left_in, program, run, snapferry};
pub use self::conversion::{Made, convert, convert_disk, convert_file, padded};
pub use self::http_proxy::{HttpProxy, Manners};
pub use self::proxy::{Cut, Proxy};
pub use self::redis::{Redis, SAFE, job};
pub use self::region::{AWAY, HOME, POLICY, SERVER, client_context, client_of, tokens};
pub use self::sim::snapferry_sim;
pub use self::wait::wait_until;
