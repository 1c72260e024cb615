#!/usr/bin/env bash
# Makes the test speech: two voices, about nine seconds each, one second of silence inside.
# Usage: make_speech.sh FOLDER. Needs espeak-ng, flite and ffmpeg (Debian packages of these names).
set -euo pipefail
folder=${1:?folder}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

espeak-ng -v en-gb -p 38 -s 155 -w "$work/a1.wav" \
  "My mother bought five purple plums, and Bob put them away before we moved."
espeak-ng -v en-gb -p 38 -s 155 -w "$work/a2.wav" \
  "Few people ever hear the wind above the open bay."
flite -voice slt -o "$work/b1.wav" -t \
  "Please bring the small blue map, because we may have to walk back from the village."
flite -voice slt -o "$work/b2.wav" -t \
  "Maybe the weather will improve by five, before the fog moves over the farm."

join() { # OUT RATE FIRST SECOND: both sentences at RATE, mono 16 bit, level -20 LUFS, a pause between
  local pause="anullsrc=r=$2:cl=mono,atrim=duration=1[p]"
  ffmpeg -loglevel error -y -i "$3" -i "$4" -filter_complex \
    "[0]aresample=$2[a];[1]aresample=$2[b];$pause;[a][p][b]concat=n=3:v=0:a=1,loudnorm=I=-20:TP=-3,aresample=$2" \
    -ac 1 -ar "$2" -c:a pcm_s16le -bitexact "$1"
}
join "$folder/speech_a_16k.wav" 16000 "$work/a1.wav" "$work/a2.wav"
join "$folder/speech_b_48k.wav" 48000 "$work/b1.wav" "$work/b2.wav"
