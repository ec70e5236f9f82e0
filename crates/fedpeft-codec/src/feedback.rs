//! Error feedback: what a client's updates have left out, to be sent later.

use fedpeft_protocol::{Digest, Round};

use crate::{CodecError, Layout, as_bytes, decode};

/// What one client's updates of one run have left out so far, as one value per value of the adapter.
///
/// It keeps the state before and after its last round. A round that is done again, because its update was lost or
/// its worker crashed, thereby begins with the same residual, and its update has the same bytes.
///
/// What was sent counts as received: if an update is refused or comes too late, what it held is lost, as it is
/// without compression.
#[derive(Debug, Clone, PartialEq)]
pub struct Feedback {
    round: Round,
    entering: Vec<f32>,
    leaving: Vec<f32>,
}

const MAGIC: [u8; 4] = *b"FPR\x01";

impl Feedback {
    /// That of a client that has sent nothing yet.
    pub fn new(layout: &Layout) -> Self {
        let zeros = vec![0.0; layout.values()];
        Self { round: 0, entering: zeros.clone(), leaving: zeros }
    }

    /// The last round that it went through; 0 if there was none.
    pub fn round(&self) -> Round {
        self.round
    }

    /// What is to be added to the changes of `round`: all that was left out before it.
    pub fn entering(&self, round: Round) -> &[f32] {
        if round == self.round { &self.entering } else { &self.leaving }
    }

    /// What has been left out up to now.
    pub fn residual(&self) -> &[f32] {
        &self.leaving
    }

    /// Takes what `round` left out.
    pub(crate) fn advance(&mut self, round: Round, left_out: Vec<f32>) {
        if round != self.round {
            self.entering = std::mem::replace(&mut self.leaving, left_out);
            self.round = round;
        } else {
            self.leaving = left_out;
        }
    }

    /// Its bytes, to be stored: `FPR`, version 1, the round, the two states as fp32, and the first 8 bytes of the
    /// SHA-256 of all that.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (entering, leaving) = (as_bytes(&self.entering), as_bytes(&self.leaving));
        let mut bytes = [&MAGIC[..], &self.round.to_le_bytes(), &entering, &leaving].concat();
        bytes.extend_from_slice(&checksum(&bytes));
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote for an adapter of this layout.
    pub fn from_bytes(bytes: &[u8], layout: &Layout) -> Result<Self, CodecError> {
        let Some((content, sum)) = bytes.split_last_chunk::<8>() else {
            return Err(CodecError::Residual("it is cut off"));
        };
        if *sum != checksum(content) {
            return Err(CodecError::Residual("its checksum is wrong: it is damaged or cut off"));
        }
        let Some(content) = content.strip_prefix(&MAGIC) else {
            return Err(CodecError::Residual("it does not begin with FPR and version 1"));
        };
        match content.split_first_chunk::<4>() {
            Some((round, states)) if states.len() as u64 == 2 * layout.bytes() => {
                let round = Round::from_le_bytes(*round);
                let (entering, leaving) = states.split_at(states.len() / 2);
                Ok(Self { round, entering: decode(entering, layout)?, leaving: decode(leaving, layout)? })
            }
            _ => Err(CodecError::Residual("it is of another layout")),
        }
    }
}

fn checksum(content: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&Digest::of(content).as_bytes()[..8]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorSpec;

    fn layout(values: u64) -> Layout {
        Layout::new(vec![TensorSpec { name: "a".into(), shape: vec![values] }]).unwrap()
    }

    #[test]
    fn a_round_done_again_begins_as_it_did() {
        let mut feedback = Feedback::new(&layout(2));
        feedback.advance(1, vec![1.0, 2.0]);
        assert_eq!(feedback.entering(1), [0.0, 0.0]);
        assert_eq!(feedback.entering(2), [1.0, 2.0]);
        feedback.advance(2, vec![3.0, 4.0]);
        feedback.advance(2, vec![3.0, 5.0]);
        assert_eq!((feedback.entering(2), feedback.entering(7)), (&[1.0, 2.0][..], &[3.0, 5.0][..]));
        assert_eq!((feedback.round(), feedback.residual()), (2, &[3.0, 5.0][..]));
    }

    #[test]
    fn it_can_be_stored_and_damage_is_found() {
        let mut feedback = Feedback::new(&layout(3));
        feedback.advance(5, vec![1.0, -0.0, 1e-40]);
        let bytes = feedback.to_bytes();
        assert_eq!(Feedback::from_bytes(&bytes, &layout(3)).unwrap(), feedback);
        assert!(Feedback::from_bytes(&bytes, &layout(4)).is_err());
        for length in 0..bytes.len() {
            assert!(Feedback::from_bytes(&bytes[..length], &layout(3)).is_err());
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(
                matches!(Feedback::from_bytes(&damaged, &layout(3)), Err(CodecError::Residual(_))),
                "{at}"
            );
        }
        feedback.advance(6, vec![f32::NAN, 0.0, 0.0]);
        assert!(matches!(
            Feedback::from_bytes(&feedback.to_bytes(), &layout(3)),
            Err(CodecError::NotFinite { .. })
        ));
    }
}
