use super::*;

#[test]
fn a_histogram_puts_each_value_into_the_first_bucket_that_holds_it() {
    let histogram = Histogram::default();
    for value in [0.0, 0.5, 0.6, 1.0, 3_600_000.0, 3_600_001.0] {
        histogram.observe(value);
    }
    let (sum, count, buckets) = histogram.read();
    assert_eq!(count, 6);
    assert_eq!(sum, 7_200_003.1);
    assert_eq!(buckets[0], (0.5, 2));
    assert_eq!(buckets[1], (1.0, 2));
    assert_eq!(buckets[18], (3_600_000.0, 1));
    assert_eq!(buckets[19], (f64::MAX, 1));
}
