//! The network between the program and its servers.
//!
//! | file | content |
//! |---|---|
//! | `proxies` | every kind of request goes through the proxy that the environment names |
//! | `proxy_faults` | a proxy that wants credentials, is gone, or refuses; addresses that name none |
//! | `names` | names by which IBM Cloud, the store and Redis see the program |
//! | `terms` | addresses and headers that stores and the policies of buckets demand |
//! | `attempts` | attempts at an identity service that is down |

mod attempts;
mod names;
mod proxies;
mod proxy_faults;
mod terms;
