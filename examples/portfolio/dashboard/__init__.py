"""The portfolio's dashboards: one for Databricks (`build`), and a page for this machine (`page`), over the same datasets."""
