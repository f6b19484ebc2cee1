#!/bin/bash
# usage: gpus.bash   (as root, in the execution point)
#
# Makes up what a machine with three GPUs of NVIDIA's and one of AMD's has for Apptainer to show in containers:
# devices, the programs that list GPUs, and for each vendor a library that a program can load. HTCondor's
# discovery simulates GPUs with the same UUIDs. Does nothing if it was done before.
set -euo pipefail

libraries=/usr/lib/x86_64-linux-gnu
if [[ -e $libraries/libcuda.so.1 ]]; then exit 0; fi

for device in nvidiactl nvidia0 nvidia1 nvidia2 kfd; do mknod -m 666 "/dev/$device" c 1 3; done

# The name inside a library, by which ldconfig and a program find it, has as many letters as the new one.
for name in libnuma libcuda; do
  LC_ALL=C sed "s/libutil/$name/g" "$libraries/libutil.so.1" >"$libraries/$name.so.1"
done
ldconfig

cat >/usr/bin/nvidia-smi <<'END'
#!/bin/sh
if [ ! -c /dev/nvidiactl ]; then
  echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
  exit 9
fi
echo "GPU 0: NVIDIA Made-Up (UUID: GPU-a0223334-4445-5667-899a-abbccddeeff0)"
echo "GPU 1: NVIDIA Made-Up (UUID: GPU-b1223334-4445-5667-899a-abbccddeeff0)"
echo "GPU 2: NVIDIA Made-Up (UUID: GPU-c2223334-4445-5667-899a-abbccddeeff0)"
END
cat >/usr/bin/rocminfo <<'END'
#!/bin/sh
if [ ! -c /dev/kfd ]; then
  echo "ROCk module is NOT loaded, possibly no GPU devices"
  exit 1
fi
echo "ROCk module is loaded"
if [ -n "$ROCR_VISIBLE_DEVICES" ]; then
  printf '  Name:                    gfx90a\n  Uuid:                    GPU-f0\n  Marketing Name:          AMD Made-Up\n'
fi
END
chmod 755 /usr/bin/nvidia-smi /usr/bin/rocminfo
