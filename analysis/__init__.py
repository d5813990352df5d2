"""From finished runs to statistics, figures, tables and a report; never imports torch."""
