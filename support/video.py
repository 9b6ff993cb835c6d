"""A video of a saved policy, its first episode in a test: --test --load_model X --video FILE.mp4 or FILE.gif.

Frames are taken and kept by Gymnasium's own recorder, without a screen; moviepy, an extra, writes the file.
"""
import os
import warnings

import gymnasium as gym

ENDINGS = (".mp4", ".gif")
GIF_FPS = 25                                                           # a GIF's pauses are whole hundredths of a second


def check_free(path, overwrite):
    """Raises ValueError, with one line, if no video can be written there. Writes nothing."""
    folder = os.path.dirname(path) or "."
    if not path.endswith(ENDINGS):
        raise ValueError(f"--video: '{path}' is no video that can be written; give a name that ends in {' or '.join(ENDINGS)}")
    if not os.path.isdir(folder):
        raise ValueError(f"--video: there is no folder '{folder}'; make it, or choose another")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--video: the folder '{folder}' cannot be written; choose another")
    if os.path.exists(path) and not (overwrite and os.path.isfile(path)):
        raise ValueError(f"--video: '{path}' exists; add --overwrite to replace it, or choose another name")


class Video(gym.wrappers.RecordVideo):
    """Keeps the frames of the first episode, for a file of any name and of either kind."""

    def __init__(self, env):
        with warnings.catch_warnings(action="ignore"):                 # it would warn of the folder, and writes nothing there
            super().__init__(env, ".", episode_trigger=lambda episode: episode == 0)

    def stop_recording(self):
        self.recording = False                                         # the frames are kept for `save_video`

    def save_video(self, path):
        """Write what was recorded, whole or not at all. Raises OSError."""
        from moviepy.video.io.ImageSequenceClip import ImageSequenceClip
        clip = ImageSequenceClip(self.recorded_frames, fps=self.frames_per_sec)
        self.recorded_frames = []                                      # else Gymnasium warns that they are lost
        name, ending = os.path.splitext(path)
        unfinished = f"{name}.new{ending}"                             # moviepy reads the kind from the ending
        try:
            if ending == ".gif":
                clip.write_gif(unfinished, fps=min(GIF_FPS, self.frames_per_sec), logger=None)
            else:
                clip.write_videofile(unfinished, logger=None)
            os.replace(unfinished, path)
        finally:
            if os.path.exists(unfinished):
                os.remove(unfinished)
