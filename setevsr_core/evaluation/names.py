"""The names of all figures, for faces that list them before anything heavy is imported."""

FIGURES = ("psnr", "psnr_y", "ssim", "ssim_y", "lpips", "dists", "vmaf", "tlpips", "warping", "niqe", "brisque",
           "musiq", "clipiqa", "dover", "sharpness")
