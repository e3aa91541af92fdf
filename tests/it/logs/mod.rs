//! Log lines as programs read them.
//!
//! | file | requirement that it checks |
//! |---|---|
//! | `lines` | every line of a run is one JSON object without a repeated key, errors and reports too |
//! | `journal` | systemd's journal finds every record of a job by the job's id |
//! | `audit` | every change in the cloud and the bucket has its line |
//! | `shapes` | what `--json` prints is what docs/json.md describes |

mod audit;
mod journal;
mod lines;
mod shapes;

use std::collections::BTreeSet;

use serde_json::Value;

/// Names in the first column of the tables of docs/logs.md.
fn documented_fields() -> BTreeSet<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/logs.md");
    let text = std::fs::read_to_string(path).unwrap();
    let cells = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// True if any text in a value contains `part`.
fn mentions(value: &Value, part: &str) -> bool {
    match value {
        Value::String(text) => text.contains(part),
        Value::Array(values) => values.iter().any(|value| mentions(value, part)),
        Value::Object(values) => values.values().any(|value| mentions(value, part)),
        _ => false,
    }
}
