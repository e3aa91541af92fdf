//! Ids of log lines that a program may wait for, as systemd's journal knows them (`MESSAGE_ID` in
//! systemd.journal-fields(7)): 128 random bits in hexadecimal digits. A line's text may change, its id does
//! not. A log call has the id in its field `message_id`.

/// A job is done: its image is the server's latest.
pub const JOB_DONE: &str = "cbf4c36a9a794fce8f6f873318e83202";
/// A job is dead: no worker takes it up again, unless a user queues it anew.
pub const JOB_DEAD: &str = "923eaa2c846e47619ca5ca2efb6c5be8";
/// A server's last good image is older than it may be, or there is none.
pub const IMAGE_STALE: &str = "6e7e15604f5441d7a37d3659d1b03566";
