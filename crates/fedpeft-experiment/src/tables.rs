//! The tables of an experiment: one form for people, one for programs.

use fedpeft_page::{Table, grouped};

use crate::{ExperimentError, spread::Spread, summary::Summary};

/// A row for every point: accuracy, bytes, and MiB until each target.
pub fn results(summary: &Summary) -> Table {
    let show = |spread: Option<Spread>, digits| spread.map(|spread| spread.show(digits)).unwrap_or_default();
    let number = |value: Option<f64>| value.map(|value| format!("{value:.1}")).unwrap_or_default();
    let private = summary.groups.iter().any(|group| group.epsilon.is_some());
    let mut header = summary.axes.clone();
    header
        .extend(["seeds", "accuracy", "trained values", "KiB up, down per update", "MiB"].map(String::from));
    header.extend(summary.targets.iter().map(|target| format!("MiB to {target}")));
    if private {
        header.push("epsilon".to_owned());
    }
    header.push("s".to_owned());
    let rows = summary.groups.iter().map(|group| {
        let mut row = group.point.clone();
        row.push(if group.finished == group.asked {
            group.asked.to_string()
        } else {
            format!("{} of {}", group.finished, group.asked)
        });
        row.push(show(group.accuracy, 3));
        row.push(group.trained_values.map(grouped).unwrap_or_default());
        row.push(match group.kib_up {
            None => String::new(),
            up => format!("{}, {}", number(up), number(group.kib_down)),
        });
        row.push(group.mib.map(|mib| mib.short()).unwrap_or_default());
        row.extend((0..summary.targets.len()).map(|target| group.show_mib_to(target)));
        if private {
            row.push(show(group.epsilon, 2));
        }
        row.push(show(group.seconds, 0));
        row
    });
    Table { rows: rows.collect(), header }
}

/// A row for every point: accuracy by round.
pub(crate) fn by_round(summary: &Summary) -> Table {
    let mut header = summary.axes.clone();
    header.push("accuracy by round".to_owned());
    let accuracy = |spread: Option<Spread>| spread.map_or("-".to_owned(), |own| format!("{:.2}", own.mean));
    let rows = summary.groups.iter().filter(|group| group.finished > 0).map(|group| {
        let curve: Vec<String> = group.rounds.iter().map(|round| accuracy(round.accuracy)).collect();
        [group.point.clone(), vec![curve.join(" ")]].concat()
    });
    Table { rows: rows.collect(), header }
}

/// A row for every trial: where it stands.
pub(crate) fn trials(summary: &Summary) -> Table {
    let rows = summary.trials.iter().map(|row| {
        let reason = row.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        vec![row.id.to_string(), row.label.clone(), format!("{}{reason}", row.status)]
    });
    Table { header: ["trial", "what", "status"].map(String::from).into(), rows: rows.collect() }
}

/// One line for every round of every finished trial.
pub fn rounds_csv(summary: &Summary) -> Result<String, ExperimentError> {
    let mut header = summary.axes.clone();
    let own = [
        "seed",
        "trial",
        "round",
        "accuracy",
        "loss",
        "train_loss",
        "bytes_up",
        "bytes_down",
        "bytes_once",
        "cumulative_bytes",
        "sampled",
        "accepted",
        "seconds",
        "epsilon",
    ];
    header.extend(own.map(String::from));
    let mut rows = Vec::new();
    for (trial, outcome) in &summary.outcomes {
        for (round, bytes) in outcome.cumulative() {
            let mut row = trial.point.clone();
            row.extend([
                trial.seed.to_string(),
                trial.id.to_string(),
                round.round.to_string(),
                optional(round.accuracy),
                optional(round.loss),
                round.train_loss.to_string(),
                round.up.to_string(),
                round.down.to_string(),
                round.once.to_string(),
                bytes.to_string(),
                round.sampled.to_string(),
                round.accepted.to_string(),
                round.seconds.to_string(),
                optional(round.epsilon),
            ]);
            rows.push(row);
        }
    }
    Ok(Table { header, rows }.csv()?)
}

/// One line for every point.
pub fn summary_csv(summary: &Summary) -> Result<String, ExperimentError> {
    let mut header = summary.axes.clone();
    let spread = |name: &str| [format!("{name}_mean"), format!("{name}_sd")];
    header.extend(["finished", "asked", "trained_values", "kib_up", "kib_down"].map(String::from));
    header.extend(["accuracy", "mib", "epsilon", "seconds"].iter().flat_map(|name| spread(name)));
    for target in &summary.targets {
        header.extend([
            format!("mib_to_{target}_mean"),
            format!("mib_to_{target}_sd"),
            format!("reached_{target}"),
        ]);
    }
    let rounded = |value: Option<f64>| optional(value.map(|value| (value * 1e6).round() / 1e6));
    let both = |own: Option<Spread>| [rounded(own.map(|own| own.mean)), rounded(own.and_then(|own| own.sd))];
    let rows = summary.groups.iter().map(|group| {
        let mut row = group.point.clone();
        row.extend([group.finished.to_string(), group.asked.to_string()]);
        row.push(group.trained_values.map(|values| values.to_string()).unwrap_or_default());
        row.extend([rounded(group.kib_up), rounded(group.kib_down)]);
        row.extend([group.accuracy, group.mib, group.epsilon, group.seconds].into_iter().flat_map(both));
        for reached in &group.mib_to {
            row.extend(both(*reached));
            row.push(reached.map_or(0, |spread| spread.n).to_string());
        }
        row
    });
    Ok(Table { rows: rows.collect(), header }.csv()?)
}

fn optional(value: Option<f64>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::summary;

    #[test]
    fn the_csv_of_rounds_is_as_promised() {
        let text = rounds_csv(&summary()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "method,alpha,seed,trial,round,accuracy,loss,train_loss,bytes_up,bytes_down,bytes_once,cumulative_bytes,\
             sampled,accepted,seconds,epsilon"
        );
        assert_eq!(lines.len(), 1 + 6 * 3);
        let id = &summary().trials[0].id;
        assert_eq!(
            lines[1],
            format!("bias,0.1,1,{id},1,0.3,1,0.5,1048576,1048576,5242880,2097152,2,1,1.5,0.5")
        );
    }

    #[test]
    fn the_csv_of_points_is_as_promised() {
        let text = summary_csv(&summary()).unwrap();
        let expected = "\
method,alpha,finished,asked,trained_values,kib_up,kib_down,accuracy_mean,accuracy_sd,mib_mean,mib_sd,epsilon_mean,\
epsilon_sd,seconds_mean,seconds_sd,mib_to_0.5_mean,mib_to_0.5_sd,reached_0.5,mib_to_0.9_mean,mib_to_0.9_sd,reached_0.9
bias,0.1,2,2,262144,1024,1024,0.425,0.035355,6,0,1.5,0,4.5,0,,,0,,,0
bias,iid,2,2,262144,1024,1024,0.525,0.035355,6,0,1.5,0,4.5,0,6,0,2,,,0
full,0.1,2,2,262144,1024,1024,0.625,0.035355,6,0,1.5,0,4.5,0,4,0,2,,,0
full,iid,0,2,,,,,,,,,,,,,,0,,,0
";
        assert_eq!(text, expected);
    }

    #[test]
    fn tables_for_people_name_what_is_missing() {
        let summary = summary();
        let results = results(&summary);
        assert_eq!(results.header.last().map(String::as_str), Some("s"));
        assert_eq!(results.rows[0][3], "0.425 ± 0.035");
        assert_eq!(results.rows[3][2], "0 of 2");
        assert!(results.rows.iter().all(|row| row.len() == results.header.len()));
        assert_eq!(by_round(&summary).rows[0][2], "0.30 0.33 0.43");
        let trials = trials(&summary);
        assert_eq!(trials.rows[6][2], "failed: no quorum");
        assert_eq!(trials.rows[7][2], "missing");
    }
}
