#!/bin/sh
# Makes docs/webcam.png: the real preview, side by side, in a window on a virtual screen.
# Needs Xvfb, xdotool, ImageMagick and FFmpeg. SECONDS_TO_SETTLE is the time before the shot,
# so that the rates in the overlay are typical.
set -e
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'kill "$window" "$screen" 2>/dev/null || true; rm -rf "$scratch"' EXIT

ffmpeg -v error -loop 1 -i examples/astronaut.jpg -t 60 -r 25 -preset ultrafast \
    -vf "crop=480:360:16+16*sin(t):20" -pix_fmt yuv420p "$scratch/in.mp4"
mkfifo "$scratch/display"
# Without -noreset it restarts whenever its last client leaves, while the next one may be connecting.
Xvfb -noreset -displayfd 3 -screen 0 960x360x24 3>"$scratch/display" 2>/dev/null &
screen=$!
read -r number <"$scratch/display"
export DISPLAY=":$number"
"${PYTHON:-python}" eval_webcam.py "$scratch/in.mp4" --background checkerboard --preset live &
window=$!
# Not --sync, which fails if any window closes during the search.
until xdotool search --name '^portraitmatting$' key s 2>/dev/null; do
    kill -0 "$window"
    sleep 1
done
sleep "${SECONDS_TO_SETTLE:-20}"
import -window root "${1:-docs/webcam.png}"
xdotool search --name '^portraitmatting$' key q
wait "$window"
