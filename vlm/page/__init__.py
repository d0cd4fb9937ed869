"""The page on which people ask about pictures and clips: `conversation` what is said, `view` how it is shown, `layout` the Gradio page."""
