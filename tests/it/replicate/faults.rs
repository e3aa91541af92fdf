//! Every call under every fault.
