//! Any bytes as a response of the VPC API: they give a model or an error, and unknown states are kept as they
//! are.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::from_slice;
use snapferry_ibmcloud::vpc::Crn;
use snapferry_ibmcloud::vpc::model::{
    ExportJob, ExportState, Image, ImageState, Instance, InstanceState, Key, OperatingSystem, Region,
    Snapshot, SnapshotClone, SnapshotState, Subnet, Volume, VolumeAttachment, VolumeState, Vpc, Zone,
};

/// Asserts that a state converts to text and back without a change.
macro_rules! round_trip {
    ($state:expr, $kind:ident) => {
        let state = $state;
        assert_eq!($kind::from(state.as_str().to_owned()), state);
    };
}

fuzz_target!(|answer: &[u8]| {
    if let Ok(snapshot) = from_slice::<Snapshot>(answer) {
        let _taken = snapshot.point_in_time();
        let _region = snapshot.crn.region().map(str::len);
        let _reasons: Vec<String> =
            snapshot.lifecycle_reasons.iter().map(|reason| reason.describe()).collect();
        round_trip!(snapshot.lifecycle_state, SnapshotState);
    }
    if let Ok(image) = from_slice::<Image>(answer) {
        let _sum = image.sha256();
        round_trip!(image.status, ImageState);
    }
    if let Ok(volume) = from_slice::<Volume>(answer) {
        round_trip!(volume.status, VolumeState);
    }
    if let Ok(instance) = from_slice::<Instance>(answer) {
        round_trip!(instance.status, InstanceState);
    }
    if let Ok(job) = from_slice::<ExportJob>(answer) {
        round_trip!(job.status, ExportState);
    }
    let _others = (
        from_slice::<VolumeAttachment>(answer).is_ok(),
        from_slice::<SnapshotClone>(answer).is_ok(),
        from_slice::<OperatingSystem>(answer).is_ok(),
        from_slice::<(Region, Zone, Vpc, Subnet, Key)>(answer).is_ok(),
    );
    if let Ok(text) = std::str::from_utf8(answer) {
        let _region = Crn::new(text).region().map(str::len);
    }
});
