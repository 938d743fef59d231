"""Reports: one HTML page that needs nothing but itself, with curves as SVG and clips as data URIs."""
