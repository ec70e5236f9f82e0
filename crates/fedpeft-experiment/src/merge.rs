//! Putting a fragment of `run.toml` into a whole one.

use toml::{Table, Value};

/// Sets what `fragment` says in `table`. Tables are merged key by key, everything else is replaced; so is a table
/// that names another `kind`, because its keys belong to that kind.
pub(crate) fn merge(table: &mut Table, fragment: &Table) {
    for (key, new) in fragment {
        match (table.get_mut(key), new) {
            (Some(Value::Table(old)), Value::Table(new)) if !changes_kind(old, new) => merge(old, new),
            _ => {
                table.insert(key.clone(), new.clone());
            }
        }
    }
}

fn changes_kind(old: &Table, new: &Table) -> bool {
    matches!((old.get("kind"), new.get("kind")), (Some(old), Some(new)) if old != new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_merge_and_kinds_replace() {
        let mut table: Table = r#"
            [data]
            clients = 4
            partition = { kind = "dirichlet", alpha = 0.5 }
            [run.training]
            batch_size = 8
        "#
        .parse()
        .unwrap();
        let fragment =
            "data.partition = { kind = 'iid' }\nrun.training.learning_rate = 0.1\nmodel.method = 'bias'";
        merge(&mut table, &fragment.parse().unwrap());
        let expected: Table = r#"
            [data]
            clients = 4
            partition = { kind = "iid" }
            [run.training]
            batch_size = 8
            learning_rate = 0.1
            [model]
            method = "bias"
        "#
        .parse()
        .unwrap();
        assert_eq!(table, expected);
        merge(&mut table, &"data.partition = { kind = 'iid', x = 1 }".parse().unwrap());
        assert_eq!(table["data"]["partition"]["x"].as_integer(), Some(1));
    }
}
