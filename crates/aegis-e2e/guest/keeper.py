# Works in a directory of the host and keeps files open there: for what has to outlive a rest.
import os
import time

os.makedirs("/workspace/inside", exist_ok=True)
os.chdir("/workspace/inside")
kept = open("kept", "w+")
gone = open("gone", "w+")
gone.write("before")
gone.flush()
os.unlink("gone")
count = 0
while True:
    count += 1
    kept.write(f"{count}\n")
    kept.flush()
    with open("../count.new", "w") as file:
        file.write(str(count))
    os.rename("../count.new", "../count")
    if os.path.exists("../ask"):
        try:
            gone.seek(0)
            state = gone.read()
            # What was read may be cached; this has to be carried out.
            os.pwrite(gone.fileno(), b"x", 100)
            os.truncate(gone.fileno(), len(state))
        except OSError as error:
            state = error.strerror
        with open("../answer", "w") as file:
            file.write(f"{os.getcwd()} {state}")
        os.unlink("../ask")
    time.sleep(0.05)
