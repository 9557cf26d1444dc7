"""The network in C, compiled here with a loop that times it: no call of Python lies between two clock readings."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from vsparse.stages.export.device.basics import Stop, finished, sha256
from vsparse.stages.export.device.facts import compiler_version, find_compiler
from vsparse.stages.export.device.layer_times import LAYER_HARNESS, marked_source

# One sample is `group` runs of `batch` calls. The loop first runs untimed for `lead_ns`, and at least once: another form has just used the
# caches. Then it goes on until `runs` samples and `turn_ns` are over, or the samples are full; it returns how many it wrote.
HARNESS = r"""
#define _POSIX_C_SOURCE 199309L
#include <time.h>
void NETWORK(const float *input, float *logits);
static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long long)t.tv_sec * 1000000000LL + (long long)t.tv_nsec;
}
long long vsparse_agent_clock(void) { /* what a sample of nothing takes, at least */
    long long least = 1000000000LL;
    for (int i = 0; i < 1000; i++) {
        long long start = now(), taken = now() - start;
        if (taken < least) least = taken;
    }
    return least;
}
long long vsparse_agent_time(const float *input, float *logits, int inputs, int classes, int batch, int group, long long runs,
                             long long turn_ns, long long lead_ns, long long capacity, long long *samples) {
    long long begin = now(), end, i = 0;
    do {
        NETWORK(input, logits);
    } while (now() - begin < lead_ns);
    begin = end = now();
    while (i < capacity && (i < runs || end - begin < turn_ns)) {
        long long start = now();
        for (int k = 0; k < group; k++)
            for (int j = 0; j < batch; j++) NETWORK(input + (long long)j * inputs, logits + (long long)j * classes);
        end = now();
        samples[i++] = end - start;
    }
    return i;
}
"""
C_OPTIONS = ["-O3", "-std=c99", "-ffp-contract=off"]


def compile_commands(compiler: str, source: dict[str, Any], library: str, threads: int, native: bool = True) -> list[list[str]]:
    """Returns the commands that compile a network in C with the harness, in a folder that holds both: the first one that works is taken."""
    units, made = units_of(source), []
    for parallel in [["-fopenmp", f"-DVS_THREADS={threads}"], []] if threads > 1 and source["precision"] != "int8" else [[]]:
        for tuned in [["-march=native"], []] if native else [[]]:
            made.append([compiler, *C_OPTIONS, *tuned, *parallel, "-shared", "-fPIC", *units, "-o", library])
    return made


def units_of(source: dict[str, Any]) -> list[str]:
    return ["harness.c", source["file"], *sorted(name for name in source["files"] if name.endswith(".S"))]


def write_harness(folder: str, prefix: str) -> None:
    with open(os.path.join(folder, "harness.c"), "w", encoding="ascii") as stream:
        stream.write(HARNESS.replace("NETWORK", prefix + "_logits"))


def compile_source(folder: str, scratch: str, source: dict[str, Any], threads: int, limit: float) -> dict[str, Any]:
    """Compiles a network in C and returns its library and how it was made; Stop 3 without a compiler, 1 where it refuses the file."""
    compiler = find_compiler()
    library = os.path.join(scratch, source["role"] + ".so")
    if compiler is None:
        return delivered(folder, source)
    place = os.path.join(scratch, source["role"])
    os.makedirs(place, exist_ok=True)
    for name in source["files"]:
        with open(os.path.join(folder, name), "rb") as given, open(os.path.join(place, name), "wb") as taken:
            taken.write(given.read())
    write_harness(place, source["prefix"])
    said = ""
    for command in compile_commands(compiler, source, library, threads):
        try:
            code, said = finished(command, limit, cwd=place)
        except subprocess.TimeoutExpired:
            raise Stop(1, "{} did not compile within {:.0f} s; give --timeout more".format(source["file"], limit)) from None
        except OSError as error:
            raise Stop(3, f"{compiler} does not start ({error}); install a C compiler, such as gcc, then run again") from None
        if code == 0:
            options = [one for one in command[1:-2] if one.startswith("-")]
            return {"library": library, "compiler": compiler_version(), "options": options, "compiled": "on this device"}
    errors = [line for line in said.splitlines() if "error" in line] or said.splitlines()[-1:] or ["no output"]
    raise Stop(1, "{} does not compile with {}: {}".format(source["file"], compiler, errors[0].strip()))


def compile_layers(folder: str, scratch: str, source: dict[str, Any], options: list[str], limit: float) -> dict[str, Any]:
    """Compiles a copy of a network in C that reads the clock between layers, as the network itself was; its library, and the layers."""
    compiler = find_compiler()
    if compiler is None or not options:
        raise Stop(3, "there is no C compiler here, which layers of C are timed with")
    place, library = os.path.join(scratch, source["role"] + "-layers"), os.path.join(scratch, source["role"] + "-layers.so")
    os.makedirs(place, exist_ok=True)
    titles: list[str] = []
    for name in source["files"]:
        with open(os.path.join(folder, name), "rb") as given:
            data = given.read()
        if name == source["file"]:
            text, titles = marked_source(data.decode("utf-8"), source["prefix"])
            data = text.encode("utf-8")
        with open(os.path.join(place, name), "wb") as taken:
            taken.write(data)
    with open(os.path.join(place, "harness.c"), "w", encoding="ascii") as stream:
        stream.write(LAYER_HARNESS.replace("NETWORK", source["prefix"] + "_logits"))
    try:
        code, said = finished([compiler, *options, *units_of(source), "-o", library], limit, cwd=place)
    except (OSError, subprocess.SubprocessError) as error:
        raise Stop(1, f"the copy of {source['file']} that times layers did not compile ({error})") from None
    if code:
        raise Stop(1, "the copy of {} that times layers does not compile: {}".format(source["file"], said.strip()[-300:]))
    return {"library": library, "titles": titles}


def delivered(folder: str, source: dict[str, Any]) -> dict[str, Any]:
    """Returns the library that was cross-compiled for this device and copied beside the source, as prebuilt.json says."""
    path = os.path.join(folder, "prebuilt-{}.so".format(source["role"]))
    if not os.path.isfile(path):
        raise Stop(3, "there is no C compiler (cc, gcc or clang) here, and no library beside {}; install gcc".format(source["file"]))
    return {"library": path, "compiler": None, "options": [], "compiled": "elsewhere, and copied here", "library_sha256": sha256(path)}
