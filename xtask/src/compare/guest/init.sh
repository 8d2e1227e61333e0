#!/bin/busybox sh
# Runs the workloads: process 1 of a guest, and an ordinary process in the same files on the host.
#
# The environment, a guest's by way of the kernel's command line:
#   GUEST      1 in a guest, where the file systems are to be mounted, and the end is power-off;
#   WORKLOADS  which ones to run, each between commas;
#   DIVISOR    by what the counts are divided.
#
# A workload is a call of `measure NAME COUNT` after the definition of `work`, which does it with
# $n as its count, and of `prepare`. Its time is that between the lines "compare: begin" and
# "compare: end", or from "compare: go" on, if it says so itself when it is ready.

export PATH=/bin
echo 'compare: init'
if [ "$GUEST" = 1 ]; then
    busybox mount -t devtmpfs dev /dev
    busybox mount -t proc proc /proc
    busybox mount -t tmpfs tmp /tmp
fi

measure() {
    case $WORKLOADS in
        *",$1,"*) ;;
        *) return ;;
    esac
    n=$(($2 / DIVISOR))
    [ $n -gt 0 ] || n=1
    prepare
    echo "compare: begin $1"
    if result=$(work 2>&3); then
        echo "compare: end $1" $result
    else
        echo "compare: failed $1"
    fi
}

# How often `openssl speed` did "$@" on blocks of 16 KiB in 2 seconds.
speed() {
    openssl speed -mr -elapsed -seconds 2 -bytes 16384 "$@" 2>&1 | while read -r line; do
        case $line in
            +DT:*) echo 'compare: go' >&2 ;;
            +R:*)
                line=${line#+R:}
                echo "${line%%:*}"
                ;;
        esac
    done
}

exec 3>&1
