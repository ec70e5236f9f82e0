//! SCAFFOLD (Karimireddy et al., arXiv 1910.06378, algorithm 1), the server's part:
//!
//! ```text
//! x <- x + learning_rate mean(y - x)       over the cohort S, unweighted
//! c <- c + |S|/N mean(change of c_i)       that is, c + sum(change of c_i) / N
//! ```
//!
//! where `y` are the clients' adapters, `c` the server's control variate and `c_i` the clients'.

use std::io::Write;

use crate::{
    accumulator::{Accumulator, Spool, SpoolError},
    mean::{Mean, Moved},
    strategy::{FedAvg, Kept, Strategy, check_range},
};

/// The step towards the mean.
#[derive(Debug, Clone, Copy)]
pub struct Scaffold {
    /// Length of a step; 1 is that of the mean.
    pub learning_rate: f64,
}

impl Strategy for Scaffold {
    fn name(&self) -> &'static str {
        "scaffold"
    }

    fn reads_global(&self) -> bool {
        true
    }

    fn next(
        &self,
        global: &mut dyn Spool,
        _kept: Kept<'_>,
        mean: &mut dyn Mean,
        out: &mut dyn Write,
    ) -> Result<(), SpoolError> {
        global.rewind()?;
        let mut bytes = Vec::new();
        mean.each(&mut |means| {
            bytes.resize(means.len() * size_of::<f32>(), 0);
            global.read_exact(&mut bytes)?;
            let values = bytes.as_chunks_mut::<4>().0;
            for (value, mean) in values.iter_mut().zip(means) {
                let present = f64::from(f32::from_le_bytes(*value));
                *value = ((present + self.learning_rate * (mean - present)) as f32).to_le_bytes();
            }
            check_range(values)?;
            Ok(out.write_all(&bytes)?)
        })
    }
}

/// Writes the server's next control variate, encoded: the present one, and the sum of what those of the clients changed by
/// over the `population` of the run, N.
///
/// # Errors
/// What cannot be read or written, or a variate beyond the range of adapter values.
pub fn control(
    present: &mut dyn Spool,
    changes: &Accumulator,
    population: u32,
    out: &mut dyn Write,
) -> Result<(), SpoolError> {
    let mut moved = Moved { base: present, sum: changes, divisor: f64::from(population) };
    let kept = Kept { before: None, after: &mut std::io::sink() };
    FedAvg.next(&mut std::io::empty(), kept, &mut moved, out)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use fedpeft_codec::{Layout, TensorSpec, encode};

    use super::*;
    use crate::Weight;

    fn sum(updates: &[[f32; 2]]) -> Accumulator {
        let layout = Layout::new(vec![TensorSpec { name: "bias".into(), shape: vec![2] }]).unwrap();
        let mut sum = Accumulator::new(layout).unwrap();
        for update in updates {
            sum.add(&encode(update), Weight::new(1).unwrap()).unwrap();
        }
        sum
    }

    #[test]
    fn adapters_move_by_the_mean_and_variates_by_the_share_of_those_that_changed() {
        let mean = sum(&[[3.0, -1.0], [5.0, 1.0]]);
        for (learning_rate, wanted) in [(1.0, [4.0, 0.0]), (0.5, [3.0, 0.5])] {
            let (mut next, kept) = (Vec::new(), Kept { before: None, after: &mut std::io::sink() });
            let mut global = Cursor::new(encode(&[2.0, 1.0]));
            Scaffold { learning_rate }.next(&mut global, kept, &mut &mean, &mut next).unwrap();
            assert_eq!(next, encode(&wanted));
        }
        // Two of eight clients.
        let mut next = Vec::new();
        let changes = sum(&[[0.5, 2.0], [1.5, -4.0]]);
        control(&mut Cursor::new(encode(&[1.0, -1.0])), &changes, 8, &mut next).unwrap();
        assert_eq!(next, encode(&[1.25, -1.25]));
    }
}
