# Reads a tree of many files and makes another one; then a large file with holes. Prints digests.
import hashlib
import os

digest, count = hashlib.sha256(), 0
for directory, names, files in os.walk("/workspace/tree"):
    names.sort()
    for name in sorted(files):
        with open(f"{directory}/{name}", "rb") as file:
            digest.update(file.read())
        count += 1
print(count, digest.hexdigest())
for at in range(1500):
    if at % 100 == 0:
        os.makedirs(f"/workspace/made/d{at // 100}")
    with open(f"/workspace/made/d{at // 100}/f{at}", "w") as file:
        file.write(str(at))
digest, size = hashlib.sha256(), 1 << 30
with open("/workspace/large", "wb") as file:
    file.truncate(size)
    for at in range(0, size, size // 16):
        block = os.urandom(1 << 20)
        file.seek(at)
        file.write(block)
        digest.update(block)
print(digest.hexdigest())
