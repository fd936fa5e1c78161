#!/usr/bin/env bash
# The models to publish: each trained by its recipe and exported in float16, with a card, to release/<name>. About 25
# minutes on two CPU cores; grocery and emoji need MIM_DATA_DIR. Finished runs are not repeated.
#
#   NAMES="shop grocery emoji"
#   HUB=<user>/mim-     push each to <user>/mim-<name> too, public, as the owner of the token (`hf auth login`)
source "$(dirname "$0")/train_arms.sh"
MAX_MEGABYTES=20

release() { # <name> <license> <credits> <override of train> ...
  local name=$1 license=$2 credits=$3 run=${MIM_RUNS_DIR:-runs}/release-$1
  shift 3
  $PYTHON -m mim_lightning.train run.id="release-$name" "$@"
  write() { # <override of export> ...
    $PYTHON -m mim_lightning.export checkpoint="$(published_checkpoint "$run")" \
      output="release/$name" precision=float16 license="$license" credits="$credits" "$@"
  }
  write
  local megabytes=$(($(du -sb "release/$name" | cut -f1) / 1000000))
  echo "release/$name: $megabytes MB"
  [ "$megabytes" -lt "$MAX_MEGABYTES" ] || { echo "release/$name: more than $MAX_MEGABYTES MB" >&2; exit 1; }
  [ -z "${HUB:-}" ] || write push_to_hub="$HUB$name" private=false
}

NAMES=${NAMES:-shop grocery emoji}
for name in $NAMES; do
  case $name in
    shop | grocery | emoji) ;;
    *) echo "NAMES: there is no model '$name'; there are shop grocery emoji" >&2; exit 2 ;;
  esac
done
imagenet="MobileNetV2 with ImageNet weights of google-coral/test_data (Apache-2.0), converted from int8."
for name in $NAMES; do
  case $name in
    shop) release shop apache-2.0 "Pictures and texts are drawn by this project." ;;
    grocery)
      release grocery apache-2.0 "Photos and texts: Grocery Store Dataset (Klasson et al., WACV 2019), MIT. $imagenet" \
        experiment=grocery_best
      ;;
    emoji)
      release emoji cc-by-4.0 "Pictures: Noto Emoji (Google, Apache-2.0), Fluent Emoji (Microsoft, MIT), Twemoji (Twitter, Inc \
and other contributors, CC BY 4.0; rasterized). Names and keywords: Unicode CLDR (Unicode-3.0). $imagenet" experiment=emoji
      ;;
  esac
done
