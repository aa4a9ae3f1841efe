//! A walk along the command line.

use std::ffi::OsString;
use std::fmt::Display;
use std::str::FromStr;

/// Options and their values: `--name value` or `--name=value`.
pub(crate) struct Arguments<I> {
    rest: I,
    /// The option whose turn it is, as it was written.
    argument: String,
    name: String,
    /// What follows its `=`.
    inline: Option<String>,
}

impl<I: Iterator<Item = OsString>> Arguments<I> {
    pub(crate) fn new(rest: I) -> Self {
        Self { rest, argument: String::new(), name: String::new(), inline: None }
    }

    /// The name of the next option; its value, if it has one, is to be asked for next.
    pub(crate) fn next_name(&mut self) -> Result<Option<String>, String> {
        let Some(argument) = self.take()? else { return Ok(None) };
        (self.name, self.inline) = match argument.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (argument.clone(), None),
        };
        self.argument = argument;
        Ok(Some(self.name.clone()))
    }

    /// The option's value as it is.
    pub(crate) fn value(&mut self) -> Result<String, String> {
        match self.inline.take() {
            Some(value) => Ok(value),
            None => self.take()?.ok_or_else(|| format!("`{}` needs a value", self.name)),
        }
    }

    pub(crate) fn parse<T: FromStr<Err: Display>>(&mut self) -> Result<T, String> {
        self.parse_if(|_| Ok(()))
    }

    pub(crate) fn positive(&mut self) -> Result<usize, String> {
        self.parse_if(|&number| if number > 0 { Ok(()) } else { Err("must be at least 1") })
    }

    pub(crate) fn above_zero(&mut self) -> Result<f32, String> {
        let right = |number: f32| number.is_finite() && number > 0.0;
        self.parse_if(|&number| if right(number) { Ok(()) } else { Err("must be finite and above 0") })
    }

    /// What is wrong if nobody knows the option.
    pub(crate) fn unknown(&self) -> String {
        format!("unknown option `{}`", self.argument)
    }

    fn take(&mut self) -> Result<Option<String>, String> {
        let text = |argument: OsString| {
            argument.into_string().map_err(|argument| format!("{} is not UTF-8", argument.display()))
        };
        self.rest.next().map(text).transpose()
    }

    pub(crate) fn parse_if<T: FromStr<Err: Display>>(
        &mut self,
        check: impl FnOnce(&T) -> Result<(), &'static str>,
    ) -> Result<T, String> {
        let value = self.value()?;
        let bad = |reason: &dyn Display| format!("`{} {value}`: {reason}", self.name);
        let parsed = value.parse().map_err(|error| bad(&error))?;
        check(&parsed).map_err(|reason| bad(&reason))?;
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Arguments<impl Iterator<Item = OsString>> {
        Arguments::new(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_value_follows_or_is_joined() {
        let mut arguments = arguments("--lr 0.5 --batch=4");
        assert_eq!(arguments.next_name().unwrap().unwrap(), "--lr");
        assert_eq!(arguments.above_zero(), Ok(0.5));
        assert_eq!(arguments.next_name().unwrap().unwrap(), "--batch");
        assert_eq!(arguments.positive(), Ok(4));
        assert_eq!(arguments.next_name(), Ok(None));
    }

    #[test]
    fn mistakes_are_named() {
        let positive = |line| {
            let mut arguments = arguments(line);
            arguments.next_name().and_then(|_| arguments.positive()).unwrap_err()
        };
        assert_eq!(positive("--batch"), "`--batch` needs a value");
        assert_eq!(positive("--batch=0"), "`--batch 0`: must be at least 1");
        assert_eq!(positive("--batch -1"), "`--batch -1`: invalid digit found in string");
        let above_zero = |line| {
            let mut arguments = arguments(line);
            arguments.next_name().and_then(|_| arguments.above_zero()).unwrap_err()
        };
        assert_eq!(above_zero("--lr fast"), "`--lr fast`: invalid float literal");
        assert_eq!(above_zero("--lr -1"), "`--lr -1`: must be finite and above 0");
        assert_eq!(above_zero("--lr nan"), "`--lr nan`: must be finite and above 0");
    }
}
