"""Versioned datasets: what exactly is in version v of dataset d?"""
