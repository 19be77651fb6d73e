//! Hashes of passwords: argon2id (RFC 9106), written in the PHC string format.

use argon2::password_hash::phc::Output;
use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordHasher as _, Version};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

/// KiB of memory that a look at a password takes, where the hash was made here.
pub const MEMORY_KIB: u32 = Params::DEFAULT_M_COST;

/// Bytes of a password.
pub const MAX_PASSWORD: usize = 1024;

/// No hash is looked at that costs more: memory in KiB, passes, lanes.
const MOST: Cost = Cost { memory: 262_144, passes: 16, lanes: 16 };

/// Why a password has no hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    #[error("the password is empty")]
    Empty,
    #[error("the password has more than {MAX} bytes", MAX = MAX_PASSWORD)]
    TooLong,
    #[error("the system has no random numbers to give: getrandom(2) fails")]
    NoRandom,
    #[error("argon2: {0}")]
    Argon2(String),
}

/// What a hash costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cost {
    /// KiB
    pub memory: u32,
    pub passes: u32,
    pub lanes: u32,
}

/// A hash that can be looked at, within bounds.
pub(super) struct Hash {
    cost: Cost,
    salt: Vec<u8>,
    output: Output,
    /// Of a user: nobody's is never right.
    of_somebody: bool,
}

/// A hash is half a secret: who has it can try passwords.
impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a hash of {:?}", self.cost)
    }
}

/// The line's hash of a password, with a fresh salt of 16 bytes: `$argon2id$v=19$m=19456,t=2,p=1$…` (OWASP's advice).
///
/// # Errors
/// [`HashError`]
pub fn hash(password: &[u8]) -> Result<String, HashError> {
    Hash::of(password, Cost::USUAL)
}

impl Cost {
    pub(super) const USUAL: Self =
        Self { memory: MEMORY_KIB, passes: Params::DEFAULT_T_COST, lanes: Params::DEFAULT_P_COST };

    fn argon2(self, output: Option<usize>) -> Result<Argon2<'static>, argon2::Error> {
        let params = Params::new(self.memory, self.passes, self.lanes, output)?;
        Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
    }
}

impl Hash {
    pub(super) fn of(password: &[u8], cost: Cost) -> Result<String, HashError> {
        match password.len() {
            0 => return Err(HashError::Empty),
            length if length > MAX_PASSWORD => return Err(HashError::TooLong),
            _ => {}
        }
        let mut salt = [0; 16];
        SystemRandom::new().fill(&mut salt).map_err(|_| HashError::NoRandom)?;
        let argon2 = cost.argon2(None).map_err(|error| HashError::Argon2(error.to_string()))?;
        let hash = argon2
            .hash_password_with_salt(password, &salt)
            .map_err(|error| HashError::Argon2(error.to_string()))?;
        Ok(hash.to_string())
    }

    /// # Errors
    /// What is wrong with it. It does not say what it is.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let none = || "its hash is no hash: make it with `enforcer passwd`".to_owned();
        let other = || "its hash is not argon2id, version 19: make it anew with `enforcer passwd`".to_owned();
        if text.starts_with('$') && !text.starts_with("$argon2id$v=19$") {
            return Err(other());
        }
        let read = PasswordHash::new(text).map_err(|_| none())?;
        if read.algorithm != argon2::ARGON2ID_IDENT || read.version != Some(Version::V0x13.into()) {
            return Err(other());
        }
        let params = Params::try_from(&read).map_err(|_| none())?;
        let cost = Cost { memory: params.m_cost(), passes: params.t_cost(), lanes: params.p_cost() };
        if cost.memory > MOST.memory || cost.passes > MOST.passes || cost.lanes > MOST.lanes {
            return Err(format!(
                "its hash costs more than {} KiB of memory, {} passes or {} lanes: make it anew with `enforcer passwd`",
                MOST.memory, MOST.passes, MOST.lanes
            ));
        }
        let (Some(salt), Some(output)) = (read.salt, read.hash) else { return Err(none()) };
        Ok(Self { cost, salt: salt.to_vec(), output, of_somebody: true })
    }

    /// One that takes as long as this, and is nobody's.
    pub(super) fn decoy(cost: Cost) -> Option<Self> {
        let output = Output::new(&[0; Params::DEFAULT_OUTPUT_LEN]).ok()?;
        Some(Self { cost, salt: vec![0; 16], output, of_somebody: false })
    }

    pub(super) fn cost(&self) -> Cost {
        self.cost
    }

    /// Whether the password is right. What cannot be computed (no memory) is not right.
    pub(super) fn verify(&self, password: &[u8]) -> bool {
        // the work is the same for a password that nobody can have
        let short = password.get(..MAX_PASSWORD).unwrap_or(password);
        let mut computed = Zeroizing::new(vec![0; self.output.len()]);
        let done = self
            .cost
            .argon2(Some(self.output.len()))
            .and_then(|argon2| argon2.hash_password_into(short, &self.salt, &mut computed));
        // compared in constant time
        let same = Output::new(&computed).is_ok_and(|computed| computed == self.output);
        done.is_ok() && same && self.of_somebody && short.len() == password.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_back_and_is_new_each_time() {
        let (one, two) = (hash(b"right").unwrap(), hash(b"right").unwrap());
        assert_ne!(one, two);
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{one}");
        let read = Hash::read(&one).unwrap();
        assert!(read.verify(b"right") && !read.verify(b"wrong") && !read.verify(b""));
        assert_eq!(read.cost(), Cost::USUAL);
        assert!(!Hash::decoy(Cost::USUAL).unwrap().verify(b"right"));
    }

    /// What another implementation has made (the reference's test vector, RFC 9106's argon2id with v=19).
    #[test]
    fn hashes_of_other_programs() {
        let text = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
        let read = Hash::read(text).unwrap();
        assert!(read.verify(b"password") && !read.verify(b"Password"));
    }

    #[test]
    fn bounds_of_a_password() {
        assert_eq!(hash(b""), Err(HashError::Empty));
        assert_eq!(hash(&[b'x'; MAX_PASSWORD + 1]), Err(HashError::TooLong));
        let cost = Cost { memory: 8, passes: 1, lanes: 1 };
        let longest = Hash::read(&Hash::of(&[b'x'; MAX_PASSWORD], cost).unwrap()).unwrap();
        assert!(longest.verify(&[b'x'; MAX_PASSWORD]));
        assert!(!longest.verify(&[b'x'; MAX_PASSWORD + 1]), "not even its beginning");
    }
}
