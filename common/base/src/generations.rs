//! A table with a bound that refuses nobody: takes values under keys; gives them back. What is put in is young; when there are as many young ones
//! as there may be they are the old ones, and those that were old are forgotten. So what is put again goes on, and what nobody came for is lost.

use std::collections::HashMap;
use std::hash::Hash;

/// Holds up to twice as many as one generation may have.
#[derive(Debug)]
pub struct Generations<K, V> {
    most: usize,
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Eq + Hash, V> Generations<K, V> {
    /// `most` is the size of one generation.
    pub fn new(most: usize) -> Self {
        Self { most, young: HashMap::new(), old: HashMap::new() }
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// Puts a value in, or the same one again so that it stays.
    pub fn put(&mut self, key: K, value: V) {
        if self.young.len() >= self.most && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 8;

    #[test]
    fn what_is_put_again_stays_and_the_rest_is_forgotten() {
        let mut table = Generations::new(MOST);
        for n in 0..100 * MOST {
            table.put(n, n);
            if n % (MOST / 2) == 0 {
                table.put(usize::MAX, n);
            }
            assert!(table.young.len() <= MOST && table.old.len() <= MOST, "{n}");
            assert!(table.get(&usize::MAX).is_some() && table.get(&n) == Some(&n), "{n}");
        }
        assert_eq!((table.get(&0), table.get(&(98 * MOST))), (None, None));
    }

    #[test]
    fn the_newest_value_is_the_one_that_counts() {
        let mut table = Generations::new(1);
        table.put("a", 1);
        table.put("b", 1);
        table.put("a", 2);
        assert_eq!(table.get(&"a"), Some(&2));
    }
}
