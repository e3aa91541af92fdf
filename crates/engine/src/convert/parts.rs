//! Cutting of the image's bytes into parts, which are sent in any order. Part 1 stays in memory until the
//! head is known, and is sent last.

use bytes::Bytes;
use snapferry_base::cancel::Stopped;
use snapferry_base::units::{to_u64, to_usize};
use tokio::sync::mpsc;

use super::Context;
use super::plan::Plan;
use crate::hash::Crc64;
use crate::source::aligned::{BufferPool, PooledBuf};
use crate::store::{Part, PartNumber};

/// Collects bytes into part buffers and sends each part when it is full.
pub struct PartWriter<'a> {
    pool: BufferPool,
    to: mpsc::Sender<Part>,
    context: &'a Context,
    /// Buffer and length of part 1, once it is full.
    first: Option<(PooledBuf, usize)>,
    current: Option<(PooledBuf, usize)>,
    /// Number of the part that is being filled.
    number: u32,
    part_len: usize,
    head_len: usize,
    written: u64,
    /// Checksum and length of each part from number 2 on, in order.
    sums: Vec<(Crc64, u64)>,
}

impl<'a> PartWriter<'a> {
    /// Makes a writer that leaves room for the head at the front of part 1.
    pub fn new(plan: &Plan, to: mpsc::Sender<Part>, context: &'a Context) -> Self {
        let pool = BufferPool::new(plan.part_buffers(), plan.part_len());
        let head_len = to_usize(plan.geometry.head_len());
        let part_len = plan.part_len();
        Self {
            pool,
            to,
            context,
            first: None,
            current: None,
            number: 1,
            part_len,
            head_len,
            written: 0,
            sums: Vec::new(),
        }
    }

    /// Returns the number of bytes so far, including the room for the head.
    pub fn position(&self) -> u64 {
        to_u64(self.head_len) + self.written
    }

    /// Adds `bytes` to the image, and sends every part that is full, except part 1.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<(), Stopped> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let count = room.len().min(bytes.len());
            let (front, rest) = bytes.split_at(count);
            room[..count].copy_from_slice(front);
            bytes = rest;
            self.advance(count)?;
        }
        Ok(())
    }

    /// Returns the unfilled rest of the current part. Waits for a buffer if a new part begins.
    fn room(&mut self) -> Result<&mut [u8], Stopped> {
        if self.current.is_none() {
            let buf = self.context.take(&self.pool)?;
            self.current = Some((buf, if self.number == 1 { self.head_len } else { 0 }));
        }
        let (buf, filled) = self.current.as_mut().expect("set above");
        Ok(&mut buf[*filled..])
    }

    fn advance(&mut self, count: usize) -> Result<(), Stopped> {
        self.written += to_u64(count);
        let (_, filled) = self.current.as_mut().expect("bytes were just put there");
        *filled += count;
        if *filled == self.part_len { self.close() } else { Ok(()) }
    }

    /// Ends the current part, which is full or the last one.
    fn close(&mut self) -> Result<(), Stopped> {
        let Some((buf, filled)) = self.current.take() else { return Ok(()) };
        let number = self.number;
        self.number += 1;
        if number == 1 {
            self.first = Some((buf, filled));
            return Ok(());
        }
        let sum = self.send(number, buf, filled)?;
        self.sums.push((sum, to_u64(filled)));
        Ok(())
    }

    fn send(&self, number: u32, buf: PooledBuf, filled: usize) -> Result<Crc64, Stopped> {
        let crc64 = Crc64::of(&buf[..filled]);
        // The buffer goes back to the pool when the last handle on these bytes is dropped. The bytes are
        // never copied.
        let body = Bytes::from_owner(buf).slice(..filled);
        let part = Part { number: PartNumber(number), body, crc64 };
        self.to.blocking_send(part).map_err(|_| Stopped)?;
        Ok(crc64)
    }

    /// Writes `head` into its room, sends the parts that are left, and returns the size and checksum of the
    /// whole image.
    pub fn finish(mut self, head: &[u8]) -> Result<(u64, Crc64), Stopped> {
        assert_eq!(head.len(), self.head_len, "the head has the length it was planned with");
        // An image without any data still has its tables, so part 1 exists.
        self.close()?;
        let (mut buf, filled) = self.first.take().expect("every image has a tail behind its head");
        buf[..head.len()].copy_from_slice(head);
        let first = self.send(1, buf, filled)?;
        let crc64 = self.sums.iter().fold(first, |sum, &(next, len)| sum.then(next, len));
        Ok((self.position(), crc64))
    }
}
