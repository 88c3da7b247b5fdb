#!/usr/bin/perl
# Another program than hv-audio for the features of a sound: it knows nothing but how loud it is.
#
#     loudness.pl AUDIO.st SOUND OTHER >OTHER.st
#
# AUDIO.st: what hv-audio wrote for SOUND, a list of features with the loudness around their frames. Each frame of OTHER gets the mean
# of those of the four frames of SOUND around which it is most alike. hv-denoise takes the result like any other (doc/formats.md).
use strict;
use warnings;

sub loudness {          # of each frame of 1/25 s, 0..1.3: 1 is what is exceeded in 5 % of them
    my ($path) = @_;
    open my $pipe, '-|', 'ffmpeg', '-nostdin', '-v', 'error', '-i', $path, qw(-f s16le -ac 1 -ar 16000 -) or die "ffmpeg: $!\n";
    binmode $pipe;
    my $raw = do { local $/; <$pipe> };
    close $pipe or die "$path: ffmpeg failed\n";
    my @x = unpack 's<*', $raw;
    my @e;
    for (my $f = 0; 640 * $f < @x; $f++) {
        my ($sum, $from, $to) = (0, 640 * $f - 320, 640 * $f + 959);
        for my $i ($from .. $to) {
            $sum += $x[$i] ** 2 * (0.5 - 0.5 * cos(6.2831853 * ($i - $from) / 1280)) if $i >= 0 && $i < @x;
        }
        push @e, sqrt($sum / 1280);
    }
    my $most = (sort { $a <=> $b } @e)[int(0.95 * $#e)] || 1;
    return map { my $v = $_ / $most; ($v > 1.3 ? 1.3 : $v) ** 0.7 } @e;
}

die "usage: loudness.pl AUDIO.st SOUND OTHER >OTHER.st\n" if @ARGV != 3;
my ($audio, $sound, $other) = @ARGV;
open my $in, '<:raw', $audio or die "$audio: $!\n";
my $file = do { local $/; <$in> };
die "$audio: no tensor file\n" if length $file < 8 || unpack('Q<', $file) > length($file) - 8;
my $length = unpack 'Q<', $file;
my $header = substr $file, 8, $length;
my ($frames, $rest, $from, $to) = $header =~
    /"audio\.features":\{"dtype":"F32","shape":\[(\d+),([\d,]+)\],"data_offsets":\[(\d+),(\d+)\]/ or die "$audio: no audio.features of dtype F32\n";
my $size = ($to - $from) / $frames;                     # bytes a frame

my @known = loudness($sound);
my @said = loudness($other);
$#known = $frames - 1 if @known > $frames;
die "$sound: shorter than four frames\n" if @known < 4;
my $data = '';
my @weight = (0.2, 0.5, 1, 0.5, 0.2);                  # two frames before to two after
for my $f (0 .. $#said) {
    my @apart;
    for my $i (0 .. $#known) {
        my $d = 0;
        for my $k (-2 .. 2) {
            my ($a, $b) = map { $_->[1] + $k < 0 ? 0 : $_->[0][$_->[1] + $k] // 0 } [\@known, $i], [\@said, $f];
            $d += $weight[$k + 2] * ($a - $b) ** 2;
        }
        push @apart, $d;
    }
    my @mean = (0) x ($size / 4);
    for my $i ((sort { $apart[$a] <=> $apart[$b] } 0 .. $#known)[0 .. 3]) {
        my @x = unpack 'f<*', substr $file, 8 + $length + $from + $i * $size, $size;
        $mean[$_] += $x[$_] / 4 for 0 .. $#x;
    }
    $data .= pack 'f<*', @mean;
}
my $n = @said;
my $out = sprintf '{"__metadata__":{"hv.version":"1","hv.stage":"loudness.pl","hv.frames":"%d","hv.fps":"25"},' .
    '"audio.features":{"dtype":"F32","shape":[%d,%s],"data_offsets":[0,%d]}}', $n, $n, $rest, length $data;
$out .= ' ' x (-length($out) % 64);
binmode STDOUT;
print pack('Q<', length $out), $out, $data or die "standard output: $!\n";
