#!/bin/sh
# Gives a new Ray cluster its folder on the volume: what the cluster before it learned, decided and wrote down.
#
#   seed.sh VOLUME CLUSTER
#
# User state and catalogue are left out: LMDB has one writer, and the old cluster may still write. State comes from the
# snapshots and from Kafka, the catalogue from Kafka. Bundles and windows never change once they are there,
# so links suffice; journals grow, so they are copied. A folder that exists is left alone. An
# interrupted run leaves nothing that counts.
set -eu
volume=$1 cluster=$2
target=$volume/$cluster
if [ -d "$target" ]; then
    echo "$target is there already"
    exit 0
fi

# The cluster before this one: the folder whose shards are in use now, else the one that was used last.
in_use() {
    for owner in "$1"/state/shard=*/owner; do
        [ -e "$owner" ] && ! flock --nonblock --shared "$owner" true && return 0
    done
    return 1
}
before=
for folder in $(ls -1dt "$volume"/*/layout.json 2>/dev/null); do
    folder=${folder%/layout.json}
    before=${before:-$folder}
    if in_use "$folder"; then
        before=$folder
        break
    fi
done

partial=$volume/.seed-$cluster
rm -rf "$partial"
mkdir -p "$partial"
if [ -n "$before" ]; then
    for name in windows models; do
        [ -d "$before/$name" ] || continue
        cp -a --link "$before/$name" "$partial/"
        # journals and notes, directly below, are written to: these need files of their own
        for file in "$before/$name"/* "$before/$name"/.lock; do
            [ -f "$file" ] && cp -a --remove-destination "$file" "$partial/$name/"
        done
    done
    for name in trust learner; do
        [ -d "$before/$name" ] && cp -a "$before/$name" "$partial/"
    done
    rm -f "$partial/learner/stop"
    # what is being written now under a temporary name will never be finished here
    find "$partial/models" -mindepth 1 -maxdepth 1 -type d -name '.*' -exec rm -rf {} + 2>/dev/null || true
    echo "$target starts from $before"
else
    echo "$target starts empty"
fi
mv "$partial" "$target"
