"""The audit projection as tables that an auditor can query with SQL."""
