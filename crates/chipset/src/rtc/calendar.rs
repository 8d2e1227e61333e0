//! Date, time and alarm in the encodings of the MC146818A ("Time, Calendar, and Alarm
//! Locations").

const SECONDS: u8 = 0;
const SECONDS_ALARM: u8 = 1;
const MINUTES: u8 = 2;
const MINUTES_ALARM: u8 = 3;
const HOURS: u8 = 4;
const HOURS_ALARM: u8 = 5;
const WEEKDAY: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
/// A byte of RAM where PCs keep the century, named in the FADT.
pub(super) const CENTURY: u8 = 0x32;

/// Whether the byte at `index` shows the time.
pub(super) fn is_time(index: u8) -> bool {
    matches!(
        index,
        SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY
    )
}

/// How numbers are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Encoding {
    binary: bool,
    hours_24: bool,
}

/// Bit 7 of the hours in 12-hour mode.
const PM: u8 = 1 << 7;

impl Encoding {
    /// DM and 24/12 of register B.
    pub(super) fn from_register_b(b: u8) -> Self {
        Self {
            binary: b & 4 != 0,
            hours_24: b & 2 != 0,
        }
    }

    fn encode(self, number: u8) -> u8 {
        if self.binary {
            number
        } else {
            let (tens, ones) = (number / 10, number % 10);
            tens << 4 | ones
        }
    }

    /// The number that `byte` stands for; up to 165 if its digits are none.
    fn decode(self, byte: u8) -> u8 {
        if self.binary {
            byte
        } else {
            (byte >> 4) * 10 + (byte & 0xf)
        }
    }

    fn encode_hour(self, hour: u8) -> u8 {
        if self.hours_24 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { PM } else { 0 };
        self.encode((hour + 11) % 12 + 1) | pm
    }

    fn decode_hour(self, byte: u8) -> u8 {
        if self.hours_24 {
            return self.decode(byte);
        }
        let afternoon = if byte & PM != 0 { 12 } else { 0 };
        self.decode(byte & !PM) % 12 + afternoon
    }
}

/// A date of the Gregorian calendar and a time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Time {
    year: i64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

const DAY_SECONDS: i64 = 86_400;
/// Days of 400 years, after which the calendar repeats.
const ERA_DAYS: i64 = 146_097;
/// Days from 1 March of year 0 to the Unix epoch.
const EPOCH_DAYS: i64 = 719_468;

impl Time {
    /// The time `seconds` after the Unix epoch.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let (year, month, day) = date_of(seconds.div_euclid(DAY_SECONDS));
        let second_of_day = seconds.rem_euclid(DAY_SECONDS);
        Self {
            year,
            month,
            day,
            hour: (second_of_day / 3600) as u8,
            minute: (second_of_day / 60 % 60) as u8,
            second: (second_of_day % 60) as u8,
        }
    }

    /// Seconds since the Unix epoch. A day that the month has not is one of the next.
    pub(super) fn to_seconds(self) -> i64 {
        self.days() * DAY_SECONDS
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }

    fn days(self) -> i64 {
        days_of(self.year, self.month, self.day)
    }

    /// Day of the week, Sunday 0.
    fn weekday(self) -> u8 {
        // The epoch was a Thursday.
        (self.days() + 4).rem_euclid(7) as u8
    }

    /// Writes the time's bytes.
    pub(super) fn encode(self, ram: &mut [u8], encoding: Encoding, weekday_offset: u8) {
        let mut put = |index: u8, byte: u8| ram[usize::from(index)] = byte;
        put(SECONDS, encoding.encode(self.second));
        put(MINUTES, encoding.encode(self.minute));
        put(HOURS, encoding.encode_hour(self.hour));
        let weekday = (self.weekday() + weekday_offset) % 7 + 1;
        put(WEEKDAY, encoding.encode(weekday));
        put(DAY, encoding.encode(self.day));
        put(MONTH, encoding.encode(self.month));
        let year = self.year.rem_euclid(10_000);
        put(YEAR, encoding.encode((year % 100) as u8));
        put(CENTURY, encoding.encode((year / 100) as u8));
    }

    /// Reads the time's bytes, and how far the day of the week is from that of the date. The
    /// chip counts on from impossible values in its own ways; here they become the nearest that
    /// can be.
    pub(super) fn decode(ram: &[u8], encoding: Encoding) -> (Self, u8) {
        let get = |index: u8| encoding.decode(ram[usize::from(index)]);
        let time = Self {
            year: i64::from(get(CENTURY).min(99)) * 100 + i64::from(get(YEAR).min(99)),
            month: get(MONTH).clamp(1, 12),
            day: get(DAY).clamp(1, 31),
            hour: encoding.decode_hour(ram[usize::from(HOURS)]).min(23),
            minute: get(MINUTES).min(59),
            second: get(SECONDS).min(59),
        };
        let shown = i16::from(get(WEEKDAY)) - 1;
        let weekday_offset = (shown - i16::from(time.weekday())).rem_euclid(7) as u8;
        (time, weekday_offset)
    }
}

/// Days from the Unix epoch to a date. Years begin in March here, so that the leap day is the
/// last of its year and the lengths of the months before it follow a linear pattern.
fn days_of(year: i64, month: u8, day: u8) -> i64 {
    let month_from_march = (i64::from(month) + 9) % 12;
    let year = year - i64::from(month <= 2);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    year.div_euclid(400) * ERA_DAYS + day_of_era - EPOCH_DAYS
}

/// The date `days` after the Unix epoch: year, month, day.
fn date_of(days: i64) -> (i64, u8, u8) {
    let days = days + EPOCH_DAYS;
    let day_of_era = days.rem_euclid(ERA_DAYS);
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let year_start = year_of_era * 365 + year_of_era / 4 - year_of_era / 100;
    let day_of_year = day_of_era - year_start;
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + days.div_euclid(ERA_DAYS) * 400 + i64::from(month <= 2);
    (year, month as u8, day as u8)
}

/// When the alarm goes off: hour, minute and second that must match, if they matter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Alarm {
    hour: Option<u8>,
    minute: Option<u8>,
    second: Option<u8>,
}

impl Alarm {
    /// Reads the alarm's bytes: 0xc0 and above match always. `None` if one can never match.
    pub(super) fn decode(ram: &[u8], encoding: Encoding) -> Option<Self> {
        const ALWAYS: u8 = 0xc0;
        let get = |index: u8, limit: u8, decode: &dyn Fn(u8) -> u8| match ram[usize::from(index)] {
            ALWAYS.. => Some(None),
            byte => Some(decode(byte)).filter(|n| *n < limit).map(Some),
        };
        Some(Self {
            hour: get(HOURS_ALARM, 24, &|byte| encoding.decode_hour(byte))?,
            minute: get(MINUTES_ALARM, 60, &|byte| encoding.decode(byte))?,
            second: get(SECONDS_ALARM, 60, &|byte| encoding.decode(byte))?,
        })
    }

    /// The first second after `seconds` that matches, within a day.
    pub(super) fn next_after(self, seconds: i64) -> Option<i64> {
        let differs = |wanted: Option<u8>, is: i64| wanted.is_some_and(|w| i64::from(w) != is);
        let mut at = seconds + 1;
        // Each step skips an hour, a minute or a second that does not match: at most 24 hours,
        // then 59 minutes, then 59 seconds.
        for _ in 0..150 {
            let of_day = at.rem_euclid(DAY_SECONDS);
            if differs(self.hour, of_day / 3600) {
                at += 3600 - of_day % 3600;
            } else if differs(self.minute, of_day / 60 % 60) {
                at += 60 - of_day % 60;
            } else if differs(self.second, of_day % 60) {
                at += 1;
            } else {
                return Some(at);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_days_agree_over_eight_centuries() {
        let mut days = days_of(1600, 1, 1);
        for year in 1600..2400 {
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let lengths = [
                31,
                28 + u8::from(leap),
                31,
                30,
                31,
                30,
                31,
                31,
                30,
                31,
                30,
                31,
            ];
            for (month, length) in (1..).zip(lengths) {
                for day in 1..=length {
                    assert_eq!(date_of(days), (year, month, day));
                    assert_eq!(days_of(year, month, day), days);
                    days += 1;
                }
            }
        }
        assert_eq!(days_of(1970, 1, 1), 0);
    }

    #[test]
    fn every_encoding_is_read_as_it_was_written() {
        for b in [0, 2, 4, 6] {
            let encoding = Encoding::from_register_b(b);
            for hour in 0..24 {
                let time = Time::from_seconds(1_700_000_000 + hour * 3600 + hour);
                let mut ram = [0; 128];
                time.encode(&mut ram, encoding, 3);
                assert_eq!(Time::decode(&ram, encoding), (time, 3), "{b} {hour}");
            }
        }
    }

    #[test]
    fn midnight_and_noon_are_12_in_12_hour_mode() {
        let encoding = Encoding::from_register_b(0);
        let hours = [0, 1, 11, 12, 13, 23].map(|hour| encoding.encode_hour(hour));
        assert_eq!(hours, [0x12, 0x01, 0x11, 0x92, 0x81, 0x91]);
    }
}
