"""A local page that names the expressions in pictures: `python -m cfmrfn.demo RUN`.

Other programs can use what the page uses, as JSON over HTTP. Every refusal is a JSON object too, of
one entry: `error`, a sentence that says why.

`POST /predict` takes a form (`multipart/form-data`) of

::

    file        the picture: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, AVIF; HEIC where
                pillow-heif is installed
    attention   1: with maps of attention
    picture     1: with the picture, as the boxes lie on it

and answers, lengths in pixels of the picture as a viewer shows it, with

::

    width, height
    seconds         that reading and prediction took
    faces           a list, the surest first; of each what `predict --json` says (see
                    cfmrfn.inference: `face`, `box`, `score`, `prediction`, `probabilities`,
                    `landmarks`), and:
      crop            the square that the network saw: its `size`, and `to_picture`, two rows of
                      three, which take [x, y, 1] in it to x and y in the picture
      attention       the weights of the places of the crop: `layers`, by layer, stream, group of
                      heads, row and column, and their `rollout` over all layers, by stream, row and
                      column; where it was asked for and the network tells it
    picture         a data URL of a JPEG, at most 1600 pixels on a side; where it was asked for

Refusals: 400 for a form that is not as above and a picture that is damaged or has too many pixels,
403 for a page of another site, 408 for a form that takes more than a minute to come, 413 for one
that is too large, 415 for what is no form or a file that is no picture, 503 while too many others
wait.

`GET /about` answers with

::

    network, run    the network's name, and that of the run
    class_names     in the network's order
    trained_on      the folder of the data set; null: drawn faces
    attention       null, or the number of `layers`, the names of the `streams`, and those of the
                    groups of `heads`: all, and those of each dilation
    most_bytes      of a picture's file
    most_pixels     of a picture

::

    curl -F file=@photo.jpg http://127.0.0.1:8765/predict
"""
