# Words counted and sorted, patterns, strings, numbers: what Perl is used for.

my $count = shift;
my @words = qw(alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu);
my ($seed, %seen, $checksum) = (1);

sub next_random {
    $seed = ($seed * 1103515245 + 12345) % 2147483648;
    return $seed >> 8;
}

for my $round (1 .. $count) {
    my $text = join ' ', map { $words[next_random() % @words] . next_random() % 100 } 1 .. 200;
    $seen{$_}++ for split / /, $text;
    (my $changed = $text) =~ s/([aeiou])([^aeiou\s]+)/\u$2$1/g;
    $checksum += () = $changed =~ /[A-Z]\w*\d\b/g;
    my @sorted = sort { $a->[1] <=> $b->[1] || $a->[0] cmp $b->[0] } map { [$_, length] } split / /, $changed;
    $checksum = ($checksum * 31 + length($sorted[$round % @sorted][0])) % 1000003;
}
my @frequent = (sort { $seen{$b} <=> $seen{$a} || $a cmp $b } keys %seen)[0 .. 2];
print "$checksum @frequent\n";
