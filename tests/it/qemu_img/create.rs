//! `create`: the output and the image compared with QEMU's.

use snapferry_testkit::oracle::QemuImg;

use super::Pair;

#[test]
fn empty_images_are_qemus() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = Pair::new(qemu);
    for line in [
        "create -f qcow2 new 1M",
        "create -f qcow2 new 513",
        "create -f qcow2 new 1.5G",
        "create -q -f qcow2 new 10T",
        "create -f qcow2 -o size=3M new",
        "create -fqcow2 -o compat=0.10,cluster_size=4k,compression_type=zlib,preallocation=off new 5M",
        "create -f qcow2 -o compat=v3 -o compression_type=zstd new 5M",
        "create -f raw other 1000",
        "create other 3M",
        "create -f raw -o preallocation=off other 0",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let name = if line.contains("new") { "new" } else { "other" };
        pair.expect_same_disk(&args, name, qemu);
    }
}

#[test]
fn mistakes_are_told_in_qemus_words() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = Pair::new(qemu);
    for line in [
        "create",
        "create -f qcow2 new",
        "create -f qcow2 new 1Q",
        "create -f foo new 5M",
        "create new 5M x",
        "create -f raw /nonexistent/new 5M",
        "create -f raw -o cluster_size=4k new 5M",
    ] {
        pair.expect_same_output(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(pair.left(), ["a.qcow2", "a.raw", "b.qcow2", "b.raw"], "{line}");
    }
}
