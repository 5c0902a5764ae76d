#!/bin/sh
# Stands in for cargo where a page is followed: what is to be built was built by the real one before, with another profile. It puts that
# where a build would, or runs it. The real one has its turn in docs::built.
verb=$1 profile=debug package=
shift
while [ $# -gt 0 ]; do
    case "$1" in
        --release) profile=release ;;
        --profile) profile=$2 && shift ;;
        -p) package=$2 && shift ;;
        --)
            shift
            break
            ;;
        *)
            echo "cargo stands in for nothing like $1" >&2
            exit 2
            ;;
    esac
    shift
done
case "$verb" in
    build) mkdir -p target && ln -sfn '@PROGRAMS@' "target/$profile" ;;
    run) exec '@PROGRAMS@'/"$package" "$@" ;;
    *) exit 2 ;;
esac
